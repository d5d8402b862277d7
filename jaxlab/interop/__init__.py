"""Exchange with the world outside: files, and models of other libraries."""
