"""Which implementation computes a product, and that its kernel lowers where there is no GPU."""

import dataclasses
import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Primitive
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from jaxlab.kernels import dispatch, nm_matmul, rules
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
    lost = {"entries": {key: {"implementation": "xla"}}, "won": {family: box}}
    between = {**table, "entries": {}}
    for stored, kernels in [
        ({}, 0),
        (table, 1),
        ({**table, "jax": "0.9.0"}, 1),
        ({**table, "jax": "0.99.0"}, 0),
        ({**table, "layout": LAYOUT_VERSION + 1}, 0),
        ({**between, "won": {family: box}}, 1),
        ({**between, "won": {family: {**box, "rows": [1, 8]}}}, 0),
        ({**between, "won": {family: {**box, "rows": [17, 64]}}}, 0),
        ({**between, "won": {family: {**box, "n": [512, 512]}}}, 0),
        ({**between, "won": {family: {**box, "k": [8192, 8192]}}}, 0),
        ({**between, "won": {"int4/g64/w64": box}}, 0),
        ({**table, **lost}, 0),
    ]:
        monkeypatch.setattr(dispatch, "_table", lambda op, kind, stored=stored: stored)
        assert lower_for_cuda("int4", 32, None, None).count("mosaic_gpu_v2") == kernels
    monkeypatch.setattr(dispatch, "_table", lambda op, kind: table)
    for everywhere, kernels in (("xla", 0), ("", 1)):
        monkeypatch.setenv(dispatch.EVERYWHERE, everywhere)
        assert lower_for_cuda("int4", 32, None, None).count("mosaic_gpu_v2") == kernels
    monkeypatch.setenv(dispatch.EVERYWHERE, "xl")
    with pytest.raises(ValueError, match=r"JAXLAB_KERNELS.*nearest: 'xla'"):
        lower_for_cuda("int4", 32, None, None)
    monkeypatch.delenv(dispatch.EVERYWHERE)
    table["entries"][key] = {**entry, "config": vars(Config(stages=99, ways=3))}
    monkeypatch.setattr(dispatch, "_table", lambda op, kind: json.loads(json.dumps(table)))
    assert lower_for_cuda("int4", 32, None, None).count("mosaic_gpu_v2") == 0


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
    for measured in (LAYOUT_VERSION, NM_LAYOUT_VERSION):
        table = {"jax": "0.10", "layout": measured, "entries": {problem.key: entry}}
        monkeypatch.setattr(dispatch, "_table", lambda op, kind, table=table: table)
        found = dispatch.stored("op", "a GPU", problem)
        assert found == (entry if measured == version else None)


TABLES = sorted(Path(dispatch.__file__).parent.glob("*/configs/*.json"))


@pytest.mark.parametrize("path", TABLES, ids=lambda p: f"{p.parts[-3]}-{p.stem}")
def test_a_stored_table_is_one_that_dispatch_reads(path):
    table = json.loads(path.read_text(encoding="utf-8"))
    module = importlib.import_module(f"jaxlab.kernels.{path.parts[-3]}")
    assert path.name == dispatch.file_name(table["device"])
    assert table["layout"] == module.Problem.layout_version
    assert table["entries"]
    # An op's own way to cut, and that of few rows, which several ops share.
    cuts = [getattr(module, name, Config) for name in ("Cut", "Config")] + [Config]
    known = [{field.name for field in dataclasses.fields(cut)} for cut in cuts]
    for entry in table["entries"].values():
        assert entry["implementation"] in dispatch.IMPLEMENTATIONS
        assert any(names.issuperset(entry["config"]) for names in known)
        # What was measured ahead is ahead.
        assert (entry["us"] < entry["xla_us"]) >= (entry["implementation"] == "mosaic_gpu")


@pytest.fixture
def always_chosen(monkeypatch):
    """A stored win of every problem."""

    class Entries(dict):
        def get(self, key, default=None):
            return {"implementation": "mosaic_gpu"}

    table = {"jax": jax.__version__, "layout": LAYOUT_VERSION, "entries": Entries()}
    monkeypatch.setattr(dispatch, "_table", lambda op, kind: table)


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
