"""Which implementation computes a product, and that its kernel lowers where there is no GPU."""

import importlib
import json
import re
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Primitive
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from jaxlab.kernels import dispatch, measured, nm_matmul, rules
from jaxlab.kernels.packing import FORMATS, LAYOUT_VERSION, Planar
from jaxlab.kernels.packing_nm import NM_LAYOUT_VERSION
from jaxlab.kernels.plan import Config
from jaxlab.kernels.quantized_matmul import Problem, quantized_matmul
from jaxlab.kernels.quantized_matmul import api as quantized_api
from jaxlab.kernels.quantized_matmul.reference import xla


@pytest.fixture
def lower_for_cuda(on_an_h100, monkeypatch):
    monkeypatch.setattr(dispatch, "_found", {})

    def lower(kind, groups, implementation, config, rows=16, n=256, k=4096, zero=False):
        words = jax.ShapeDtypeStruct((n, k // FORMATS[kind].fields), jnp.uint16)
        scale = jax.ShapeDtypeStruct((groups, n), jnp.bfloat16)
        x = jax.ShapeDtypeStruct((rows, k), jnp.bfloat16)

        def product(x, words, scale, zero):
            packed = Planar(words, kind, k)
            return quantized_api.planar_matmul(
                "product", x, packed, scale, zero, implementation, config, None
            )

        # What is traced once is not traced again, and tests change what is stored in between.
        rules.product.cache_clear()
        with on_an_h100():
            traced = jax.jit(product).trace(x, words, scale, scale if zero else None)
            return traced.lower(lowering_platforms=("cuda",)).as_text()

    return lower


@pytest.mark.parametrize(
    ("kind", "groups", "config"),
    [
        ("int4", 32, Config()),
        ("int8", 1, Config(2, 3, fast=False)),
        ("binary", 1, Config(2, 2, split_k=2)),
        ("int4", 32, Config(1, 2, split_k=4, parts=2, slots=3)),
        ("int8", 1, Config(2, 2, depth=2, in_flight=2)),
    ],
)
def test_the_kernel_lowers_for_cuda(lower_for_cuda, kind, groups, config):
    text = lower_for_cuda(kind, groups, "mosaic_gpu", config, zero=groups > 1)
    assert text.count("mosaic_gpu_v2") == 1


def test_only_a_measured_win_takes_the_kernel(monkeypatch, lower_for_cuda):
    problem = Problem(16, 256, 4096, "int4", 128, 64)
    key, family = problem.key, problem.family
    entry = {"implementation": "mosaic_gpu", "config": vars(Config()), "us": 1.0}
    table = {"jax": jax.__version__, "layout": LAYOUT_VERSION, "entries": {key: entry}}
    box = {"rows": [9, 16], "n": [256, 512], "k": [4096, 4096], "implementation": "mosaic_gpu"}
    lost = {"entries": {key: {"implementation": "xla"}}, "won": {family: [box]}}
    between = {**table, "entries": {}}
    for stored, kernels in [
        ({}, 0),
        (table, 1),
        ({**table, "jax": "0.9.0"}, 1),
        ({**table, "jax": "0.99.0"}, 0),
        ({**table, "layout": LAYOUT_VERSION + 1}, 0),
        ({**between, "won": {family: [box]}}, 1),
        ({**between, "won": {family: [{**box, "rows": [1, 8]}]}}, 0),
        ({**between, "won": {family: [{**box, "rows": [1, 8]}, box]}}, 1),
        ({**between, "won": {family: [{**box, "rows": [17, 64]}]}}, 0),
        ({**between, "won": {family: [{**box, "n": [512, 512]}]}}, 0),
        ({**between, "won": {family: [{**box, "k": [8192, 8192]}]}}, 0),
        ({**between, "won": {"int4/g64/w64": [box]}}, 0),
        ({**table, **lost}, 0),
    ]:
        monkeypatch.setattr(measured, "_table", lambda op, kind, stored=stored: stored)
        assert lower_for_cuda("int4", 32, None, None).count("mosaic_gpu_v2") == kernels
    monkeypatch.setattr(measured, "_table", lambda op, kind: table)
    for everywhere, kernels in (("xla", 0), ("", 1)):
        monkeypatch.setenv(dispatch.EVERYWHERE, everywhere)
        assert lower_for_cuda("int4", 32, None, None).count("mosaic_gpu_v2") == kernels
    monkeypatch.setenv(dispatch.EVERYWHERE, "xl")
    with pytest.raises(ValueError, match=r"JAXLAB_KERNELS.*nearest: 'xla'"):
        lower_for_cuda("int4", 32, None, None)
    monkeypatch.delenv(dispatch.EVERYWHERE)
    table["entries"][key] = {**entry, "config": vars(Config(stages=99, ways=3))}
    monkeypatch.setattr(measured, "_table", lambda op, kind: json.loads(json.dumps(table)))
    assert lower_for_cuda("int4", 32, None, None).count("mosaic_gpu_v2") == 0


def test_between_sizes_that_won_it_is_cut_as_with_more_rows(monkeypatch):
    box = {"rows": [1, 64], "n": [256, 512], "k": [4096, 4096], "implementation": "mosaic_gpu"}
    entries = {
        Problem(rows, 256, 4096, "int4", 128, 64).key: {
            "implementation": "mosaic_gpu", "config": {"ways": rows}
        }
        for rows in (1, 16)
    }  # fmt: skip
    won = {"int4/g128/w64": [box]}
    table = {"jax": jax.__version__, "layout": LAYOUT_VERSION, "entries": entries, "won": won}
    monkeypatch.setattr(measured, "_table", lambda op, kind: table)
    for rows, n, config in [
        (1, 256, {"ways": 1}), (2, 256, {"ways": 16}), (16, 256, {"ways": 16}), (17, 256, None),
        (2, 384, None),
    ]:  # fmt: skip
        found = measured.stored("op", "a GPU", Problem(rows, n, 4096, "int4", 128, 64))
        assert (found["implementation"], found["config"]) == ("mosaic_gpu", config)
    assert measured.stored("op", "a GPU", Problem(65, 256, 4096, "int4", 128, 64)) is None


@pytest.mark.parametrize(
    ("problem", "version"),
    [
        (Problem(16, 256, 4096, "int4", 128, 64), LAYOUT_VERSION),
        (nm_matmul.Problem(16, 256, 1024, 2, 4, 1), NM_LAYOUT_VERSION),
    ],
)
def test_what_was_measured_counts_for_the_layout_of_its_op(monkeypatch, problem, version):
    assert LAYOUT_VERSION != NM_LAYOUT_VERSION  # one would do for both otherwise
    entry = {"implementation": "mosaic_gpu"}
    for layout in (LAYOUT_VERSION, NM_LAYOUT_VERSION):
        table = {"jax": "0.10", "layout": layout, "entries": {problem.key: entry}}
        monkeypatch.setattr(measured, "_table", lambda op, kind, table=table: table)
        found = measured.stored("op", "a GPU", problem)
        assert found == (entry if layout == version else None)


TABLES = sorted(Path(dispatch.__file__).parent.glob("*/configs/*.json"))


# What a stored key says, by op, and how a problem is made of it.
PACKED = r"(?P<kind>\w+)/g(?P<group>\d+)/w(?P<width>\d+)/(?P<n>\d+)x(?P<k>\d+)/b(?P<rows>\d+)"
KEYS = {
    "quantized_matmul": (PACKED, lambda of, **key: of(**key)),
    "binary_matmul": (PACKED, lambda of, **key: of(**key)),
    "nm_matmul": (
        r"(?P<n>\d+):(?P<m>\d+)(?:/block(?P<block>\d+))?(?:/(?P<kind>[a-z]\w+)/g(?P<scaled>\d+))?"
        r"/(?P<n_out>\d+)x(?P<k>\d+)/b(?P<rows>\d+)",
        lambda of, **key: of(**{"block": 1, **key}),
    ),
    "gemv": (
        r"(?P<turned>At/)?(?P<x_dtype>\w+)/m(?P<m>\d+)/n(?P<n>\d+)/b(?P<rows>\d+)",
        lambda of, turned="", **key: of(dtype="bfloat16", transposed=bool(turned), **key),
    ),
    "low_rank_matmul": (
        r"(?P<dtype>\w+)/r(?P<rank>\d+)/(?P<n>\d+)x(?P<k>\d+)/b(?P<rows>\d+)",
        lambda of, **key: of(**key),
    ),
    "kron_matvec": (
        r"(?P<dtype>\w+)/(?P<m1>\d+)x(?P<n1>\d+)/(?P<m2>\d+)x(?P<n2>\d+)/s(?P<rows>\d+)",
        lambda of, **key: of(**key),
    ),
    "sign_matmul": (
        r"(?P<left>\w+)/(?P<dtype>\w+)/w(?P<width>\d+)/\w+/(?P<n>\d+)x(?P<k>\d+)/b(?P<rows>\d+)",
        lambda of, left, **key: of(packed=left == "signs", **key),
    ),
    "monarch_matmul": (
        r"(?P<blocks>\d+)-(?P<out_blocks>\d+)-(?P<rank>\d+)/(?P<before>[a-z]+)-(?P<after>[a-z]+)"
        r"(?P<turned>-turned)?/(?P<n>\d+)x(?P<k>\d+)/b(?P<rows>\d+)",
        lambda of, blocks, out_blocks, rank, before, after, n, k, rows, turned="": of(
            *(rows, blocks, k // blocks, out_blocks, n // out_blocks, rank),
            *(after == "blocked", before == "blocked", bool(turned)),
        ),
    ),
}


def rebuilt(op, of, key):
    pattern, make = KEYS[op]
    found = re.fullmatch(pattern, key).groupdict()
    return make(of, **{k: int(v) if v.isdigit() else v for k, v in found.items() if v})


def refusal(of):
    """The function, or the method, that says why a kernel does not take a problem."""
    return getattr(importlib.import_module(of.__module__), "refuse", None) or of.refuse


@pytest.mark.parametrize("path", TABLES, ids=lambda p: f"{p.parts[-3]}-{p.stem}")
def test_a_stored_table_is_one_that_dispatch_reads(path):
    table = json.loads(path.read_text(encoding="utf-8"))
    module = importlib.import_module(f"jaxlab.kernels.{path.parts[-3]}")
    assert path.name == measured.file_name(table["device"])
    assert table["layout"] == module.Problem.layout_version
    assert table["entries"]
    for key, entry in table["entries"].items():
        problem = rebuilt(path.parts[-3], module.Problem, key)
        assert problem.key == key
        assert not refusal(module.Problem)(problem, problem.cut(entry["config"]))
        assert entry["implementation"] in dispatch.IMPLEMENTATIONS
        # What was measured ahead is ahead.
        assert (entry["us"] < entry["xla_us"]) >= (entry["implementation"] == "mosaic_gpu")


@pytest.fixture
def always_chosen(monkeypatch):
    """A stored win of every problem."""

    class Entries(dict):
        def get(self, key, default=None):
            return {"implementation": "mosaic_gpu"}

    table = {"jax": jax.__version__, "layout": LAYOUT_VERSION, "entries": Entries()}
    monkeypatch.setattr(measured, "_table", lambda op, kind: table)


def test_a_kernel_that_fails_after_tracing_is_left_out(
    always_chosen, lower_for_cuda, monkeypatch, caplog
):
    cannot = Primitive("cannot")  # has shapes, and no lowering
    cannot.def_abstract_eval(lambda x: x)

    def broken(package, name):
        return lambda x, packed, floating, **settings: cannot.bind(xla(x, packed, floating))

    assert lower_for_cuda("int4", 32, None, None).count("mosaic_gpu_v2") == 1
    monkeypatch.setattr(dispatch, "on_demand", broken)
    dispatch._found.clear()
    with caplog.at_level("WARNING"):
        assert lower_for_cuda("int4", 32, None, None).count("mosaic_gpu_v2") == 0
        assert lower_for_cuda("int4", 32, None, None).count("mosaic_gpu_v2") == 0
    assert caplog.text.count("XLA runs instead") == 1
    with pytest.raises(NotImplementedError, match="cannot"):
        lower_for_cuda("int4", 32, "mosaic_gpu", None)


def test_what_was_found_good_is_tried_again_with_wider_indices(always_chosen, lower_for_cuda):
    for wide in (False, True, False):
        with jax.enable_x64(wide):
            lower_for_cuda("int4", 32, None, None)
    assert len(dispatch._found) == 2


class _GPU(NamedTuple):
    device_kind: str
    compute_capability: str
    platform: str = "gpu"


@pytest.mark.parametrize("kind", ["NVIDIA H100", "NVIDIA A100"])
def test_a_device_that_a_mesh_names_may_be_here(on_an_h100, monkeypatch, kind):
    tried = []
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda self: tried.append(self))
    monkeypatch.setattr(jax, "devices", lambda: [_GPU(kind, "8.0")])
    here = kind == "NVIDIA H100"
    with on_an_h100():
        assert dispatch.device() == ("gpu", "NVIDIA H100")
        dispatch._compile(lambda x: x, (jax.ShapeDtypeStruct((2,), jnp.float32),))
        assert len(tried) == here
        if here:
            with pytest.raises(NotImplementedError, match="not 8"):
                dispatch.require_hopper(None)
        else:
            dispatch.require_hopper(None)


def test_xla_runs_where_a_kernel_would_have_to_be_split(always_chosen, on_an_h100, monkeypatch):
    with on_an_h100():
        device = jax.sharding.get_abstract_mesh().abstract_device
    problem = Problem(16, 256, 4096, "int4", 128, 64)
    for sizes, axis_types, name in [
        ((2,), (AxisType.Auto,), "xla"),
        ((2,), (AxisType.Explicit,), "xla"),
        ((1,), (AxisType.Auto,), "mosaic_gpu"),
        ((2,), (AxisType.Manual,), "mosaic_gpu"),
        ((2, 2), (AxisType.Manual, AxisType.Auto), "xla"),
        ((2, 1), (AxisType.Manual, AxisType.Auto), "mosaic_gpu"),
    ]:
        mesh = AbstractMesh(sizes, ("a", "b")[: len(sizes)], axis_types, abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            assert dispatch.choice("op", problem, None, ()).name == name
            assert dispatch.takes("op", problem) == (name != "xla")
            monkeypatch.setenv(dispatch.EVERYWHERE, "mosaic_gpu")
            assert dispatch.takes("op", problem)
            monkeypatch.setenv(dispatch.EVERYWHERE, "xla")
            assert not dispatch.takes("op", problem)
            monkeypatch.delenv(dispatch.EVERYWHERE)
    monkeypatch.setattr(dispatch, "device", lambda: ("gpu", "NVIDIA H100"))
    for count, name in ((1, "mosaic_gpu"), (2, "xla")):
        monkeypatch.setattr(jax, "device_count", lambda count=count: count)
        assert dispatch.choice("op", problem, None, ()).name == name


@pytest.mark.parametrize("implementation", [None, "mosaic_gpu"])
def test_the_kernel_lowers_on_shards(always_chosen, on_an_h100, implementation):
    with on_an_h100():
        device = jax.sharding.get_abstract_mesh().abstract_device
    mesh = AbstractMesh((2,), ("n",), (AxisType.Auto,), abstract_device=device)
    rules.product.cache_clear()
    x = jax.ShapeDtypeStruct((16, 4096), jnp.bfloat16)
    words = jax.ShapeDtypeStruct((256, 1024), jnp.uint16)
    scale = jax.ShapeDtypeStruct((32, 256), jnp.bfloat16)

    def local(x, words, scale):
        packed = Planar(words, "int4", 4096)
        return quantized_matmul(x, packed, scale, implementation=implementation)

    specs = (P(), P("n", None), P(None, "n"))
    with jax.sharding.use_abstract_mesh(mesh):
        product = jax.shard_map(local, in_specs=specs, out_specs=P(None, "n"))
        traced = jax.jit(product).trace(x, words, scale)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("mosaic_gpu_v2") == 1
