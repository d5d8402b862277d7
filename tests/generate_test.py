"""The command that writes text: from a run, from a checkpoint, compressed on the way."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from jaxlab.config import base_config
from jaxlab.core import registry
from jaxlab.generate import load_writer, main
from jaxlab.interop.llama import export_llama
from jaxlab.models.generation import generate
from jaxlab.training.experiment import Experiment
from jaxlab.training.run import Run


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A checkpoint of random parameters, whose tokens are letters."""
    folder = tmp_path_factory.mktemp("llama") / "a"
    section = {"name": "decoder", "vocab_size": 32, "seq_len": 24, "d_model": 16, "depth": 1}
    section |= {"heads": 2, "d_mlp": 32}
    model = registry.build("model", section, rngs=nnx.Rngs(0))
    export_llama(nnx.to_pure_dict(nnx.state(model)), folder, section)
    letters = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz 01234")}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_checkpoint_goes_on_with_its_likeliest_tokens(llama, capsys):
    assert main([str(llama), "--prompt=abc", "--length=8", "--batch=2"]) == 0
    printed = capsys.readouterr()
    writer = load_writer(llama)
    tokens = writer.encode("abc")
    assert tokens.tolist() == [0, 1, 2]
    rows = generate(writer.network.graph, writer.params, tokens[None], length=8)
    assert printed.out == writer.decode(np.concatenate([tokens, rows[0]])) + "\n"
    assert printed.out.startswith("abc")
    assert "tokens/s" in printed.err
    assert "batch 2" in printed.err


def test_it_is_compressed_on_the_way(llama, capsys):
    rules = [[".*/(attn|mlp)/.*/kernel", "quantized", {"quant": "int8", "group": None}]]
    ask = [str(llama), "--length=4", "--prompt=a", "--repeat=0", "--dtype=bfloat16"]
    sizes = []
    for extra in ([], [f"--compress={json.dumps(rules)}"]):
        assert main([*ask, *extra]) == 0
        sizes.append(int(capsys.readouterr().err.split(" bytes")[0].replace(",", "")))
    assert sizes[1] < sizes[0]


def test_drawn_texts_differ_and_repeat(llama, capsys):
    ask = [str(llama), "--length=16", "--prompt=a", "--repeat=0", "--temperature=5", "--batch=3"]
    texts = []
    for seed in (0, 0, 1):
        assert main([*ask, f"--seed={seed}"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0].splitlines())) == 3


def test_a_run_is_read_as_it_was_finalized(tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    for name in ("a", "b", "c", "d"):
        (tmp_path / "texts" / f"{name}.txt").write_text(f"{name} text " * 40)
    c = base_config("tiny.py")
    c.workdir, c.steps, c.batch_size = str(tmp_path / "run"), 2, 4
    c.task.name = "language_model"
    c.data.update(name="text_folder", path=str(tmp_path / "texts"), seq_len=16)
    c.model.update(name="decoder", d_model=16, depth=1, heads=2, d_mlp=16)
    c.compress.mlp = {"path": ".*/mlp/.*/kernel", "name": "nm", "n": 2, "m": 4}
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        Run(Experiment(c.to_dict())).train()
    capsys.readouterr()
    assert main([c.workdir, "--prompt=a te", "--length=5", "--repeat=0"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("a te")
    up = load_writer(tmp_path / "run").params["layers"][0]["mlp"]["up"]["kernel"]
    assert type(up).__name__ == "NMPacked"


def test_what_is_wrong_is_one_line_and_status_2(llama, tmp_path, capsys):
    for arguments, says in [
        ([str(tmp_path)], "no config.json"),
        ([str(llama), "--prompt="], "--prompt is empty"),
        ([str(llama), "--batch=0"], "nearest: 1"),
        ([str(llama), "--prompt=abc", "--length=40"], "nearest: length=21"),
        ([str(llama), '--compress=[["x", "nm", {}]]', "--length=1"], "'x'"),
        ([str(llama), "--compress=oops", "--length=1"], "--compress='oops' is no JSON (Expecting"),
        ([str(llama), '--compress=["x", "nm"]', "--length=1"], "is a list of rules as JSON"),
    ]:
        assert main(arguments) == 2
        printed = capsys.readouterr().err
        assert says in printed
        assert printed.startswith("generate: ")
        assert printed.count("\n") == 1
