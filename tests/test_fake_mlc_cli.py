"""The stand-in for mlc_llm's command line does what the real one does, and fails as it does."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inference.backends._mlc_files import open_model
from tests.conftest import wait_until
from tests.mlc_checkpoints import (
    break_checkpoint,
    make_gpt2,
    make_llama,
    make_qwen2,
    read_safetensors,
)
from tests.mlc_tokenizer import IM_END

FAKE = Path(__file__).resolve().parent / "fake_mlc"
MAKERS = {"llama": make_llama, "qwen2": make_qwen2, "gpt2": make_gpt2}
QUANTIZATION = "q4f16_1"


def start(*arguments: object, path: Path = FAKE) -> subprocess.Popen[str]:
    """Start a step."""
    return subprocess.Popen(
        [sys.executable, "-m", "mlc_llm", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(*arguments: object, path: Path = FAKE) -> tuple[int, str]:
    """Run a step; return its exit code and all that it said."""
    process = start(*arguments, path=path)
    out, err = process.communicate(timeout=30)
    return process.returncode, out + err


def step(
    name: str, source: Path, out: Path, quantization: str = QUANTIZATION, **named: Any
) -> tuple[int, str]:
    """Run one of the three steps with the arguments that a builder gives it."""
    given: list[object] = ["--quantization", quantization]
    if name == "gen_config":
        given += ["--conv-template", "chatml", "--context-window-size", 128, "--prefill-chunk-size", 64]
        return run(name, source, *given, "--max-batch-size", 4, "-o", out, **named)
    if name == "convert_weight":
        return run(name, source, *given, "--device", "cpu", "-o", out, **named)
    return run(name, out, *given, "--device", "cpu", "-o", out / "lib.so", **named)


def build(source: Path, out: Path, quantization: str = QUANTIZATION, **named: Any) -> Path:
    """Run all three steps."""
    for name in ("gen_config", "convert_weight", "compile"):
        code, said = step(name, source, out, quantization, **named)
        assert code == 0, said
    return out


@pytest.mark.parametrize("family", MAKERS)
def test_builds_what_the_backend_accepts(family: str, tmp_path: Path) -> None:
    """The result of the three steps is whole in the eyes of the backend, and has the sizes asked for."""
    out = build(MAKERS[family](tmp_path / "source"), tmp_path / "out")
    (tmp_path / "run").mkdir()
    model = open_model(out, tmp_path / "run")
    config = json.loads((out / "mlc-chat-config.json").read_text())
    assert (config["context_window_size"], config["prefill_chunk_size"]) == (128, 64)
    assert config["model_config"]["max_batch_size"] == 4
    assert config["conv_template"]["name"] == "chatml"
    assert config["model_type"] == family and config["quantization"] == QUANTIZATION
    assert model.vocabulary_tokens == 512
    assert "tokenizer.json" in config["tokenizer_files"] and (out / "tokenizer.json").is_file()


def test_sizes_are_those_of_the_format(tmp_path: Path) -> None:
    """Four bits and a scale of 16 for 32 weights; norms as they are: computed by hand for the tiny llama."""
    out = build(make_llama(tmp_path / "source"), tmp_path / "out")
    matrices = 512 * 128 + 2 * (256 * 128 + 128 * 128 + 512 * 128 + 128 * 256)
    norms = 5 * 128
    expected = matrices * 4.5 / 8 + norms * 2
    cache = json.loads((out / "tensor-cache.json").read_text())
    assert sum(shard["nbytes"] for shard in cache["records"]) == expected == 204032
    assert cache["metadata"]["ParamBytes"] == expected
    assert cache["metadata"]["BitsPerParam"] == pytest.approx(expected * 8 / (matrices + norms))


def test_singles_are_halves_on_the_disk(tmp_path: Path) -> None:
    """Of f32 the file has bf16, and a second list says so; ParamBytes is the size in memory."""
    out = build(make_llama(tmp_path / "source"), tmp_path / "out", "q0f32")
    cache = json.loads((out / "tensor-cache.json").read_text())
    halves = json.loads((out / "tensor-cache-b16.json").read_text())
    assert sum(shard["nbytes"] for shard in cache["records"]) * 2 == cache["metadata"]["ParamBytes"]
    assert {r["dtype"] for shard in cache["records"] for r in shard["records"]} == {"float32"}
    assert {r["dtype"] for shard in halves["records"] for r in shard["records"]} == {"bfloat16"}


def test_shards_are_listed_with_their_sums(tmp_path: Path) -> None:
    """Every shard has the length and the MD5 sum of its record, and follows the bound on its size."""
    source = make_llama(tmp_path / "source", fake_mlc={"convert_weight": {"shard_bytes": 50_000}})
    out = build(source, tmp_path / "out")
    records = json.loads((out / "tensor-cache.json").read_text())["records"]
    assert len(records) > 3
    for record in records:
        data = (out / record["dataPath"]).read_bytes()
        assert len(data) == record["nbytes"] == sum(each["nbytes"] for each in record["records"])
        assert hashlib.md5(data, usedforsecurity=False).hexdigest() == record["md5sum"]


def test_same_checkpoint_makes_same_shards(tmp_path: Path) -> None:
    """Shards follow from the weights alone: in one file or in three, but not of another seed."""
    shards = []
    every: list[dict[str, Any]] = [{}, {"shards": 3}, {"seed": 2}]
    for number, options in enumerate(every):
        source = make_llama(tmp_path / f"source{number}", **options)
        out = tmp_path / f"out{number}"
        assert step("convert_weight", source, out)[0] == 0
        shards.append((out / "params_shard_0.bin").read_bytes())
    assert shards[0] == shards[1] != shards[2]


def test_writes_the_index_into_the_source(tmp_path: Path) -> None:
    """convert_weight leaves model.safetensors.index.json beside a single file."""
    source = make_llama(tmp_path / "source")
    assert step("convert_weight", source, tmp_path / "out")[0] == 0
    index = json.loads((source / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == read_safetensors(source / "model.safetensors").keys()


def test_library_opens_and_says_how_it_was_compiled(tmp_path: Path) -> None:
    """The dynamic linker takes the library."""
    out = build(make_llama(tmp_path / "source"), tmp_path / "out")
    assert ctypes.CDLL(str(out / "lib.so"))
    assert b'"max_batch_size": 4' in (out / "lib.so").read_bytes()


@pytest.mark.parametrize(
    ("how", "options", "failing", "said"),
    [
        (
            "unknown model_type",
            {},
            "gen_config",
            "ValueError: Unknown model type: novelty. Available ones: [",
        ),
        ("unknown model_type", {}, "convert_weight", "ValueError: Unknown model type: novelty."),
        ("no model_type", {}, "gen_config", "ValueError: 'model_type' not found in: "),
        ("no head", {"tied": False}, "convert_weight", "exist in the weight files:\n  lm_head.weight"),
        ("no norm", {}, "convert_weight", "exist in the weight files:\n  model.norm.weight"),
        ("stale index", {}, "convert_weight", "following extern parameters do not exist in the weight files"),
        ("absent shard", {}, "convert_weight", "FileNotFoundError"),
        ("cut", {}, "convert_weight", "SafetensorError: Error while deserializing header"),
        ("pickle beside", {}, "convert_weight", "UnpicklingError"),
        ("pickle only", {}, "convert_weight", "UnpicklingError"),
        ("no weights", {}, "convert_weight", "ValueError: Fail to detect source weight format."),
    ],
)
def test_refuses_a_broken_checkpoint(
    how: str, options: dict[str, Any], failing: str, said: str, tmp_path: Path
) -> None:
    """What the real loader does not take ends with its words and exit code 1."""
    source = break_checkpoint(make_llama(tmp_path / "source", **options), how)
    code, output = step(failing, source, tmp_path / "out")
    assert (code, said in output) == (1, True), output
    assert not (tmp_path / "out" / "tensor-cache.json").exists()


def test_refuses_prefixed_gpt2_names(tmp_path: Path) -> None:
    """A GPT-2 as transformers saves it has none of the names that MLC looks for."""
    code, output = step("convert_weight", make_gpt2(tmp_path / "source", prefixed=True), tmp_path / "out")
    assert code == 1
    assert "The following extern parameters do not exist in the weight files:\n  h.0.attn" in output


def test_rope_theta_below_rope_parameters_is_not_seen(tmp_path: Path) -> None:
    """Llama takes 10000 without a word, Qwen2 stops."""
    source = break_checkpoint(make_llama(tmp_path / "llama"), "rope_parameters")
    assert step("gen_config", source, tmp_path / "out")[0] == 0
    config = json.loads((tmp_path / "out" / "mlc-chat-config.json").read_text())["model_config"]
    assert config["position_embedding_base"] == 10000
    source = break_checkpoint(make_qwen2(tmp_path / "qwen2"), "rope_parameters")
    code, output = step("gen_config", source, tmp_path / "out2")
    assert (code, "missing 1 required positional argument: 'rope_theta'" in output) == (1, True)


def test_options_are_checked(tmp_path: Path) -> None:
    """What argparse refuses ends with exit code 2: a path, a quantization, a template, a device."""
    source = make_llama(tmp_path / "source")
    out = ("-o", tmp_path / "out")
    plain = ("--quantization", QUANTIZATION)
    for arguments in (
        ("gen_config", tmp_path / "nowhere", *plain, "--conv-template", "chatml", *out),
        ("gen_config", source, "--quantization", "q5f16_9", "--conv-template", "chatml", *out),
        ("gen_config", source, *plain, "--conv-template", "novelty", *out),
        ("gen_config", source, *plain, *out),
        ("convert_weight", source, *plain, "--device", "cuda", *out),
        ("compile", source, *plain, "-o", tmp_path / "lib.so"),
    ):
        assert run(*arguments)[0] == 2, arguments


def test_compile_has_no_device_that_is_not_there(tmp_path: Path) -> None:
    """A device is detected by compile itself, so that its reason is told."""
    out = tmp_path / "out"
    assert step("gen_config", make_llama(tmp_path / "source"), out)[0] == 0
    code, output = run("compile", out, "--device", "cuda", "-o", out / "lib.so")
    assert (code, "Device is not found on your local environment: cuda" in output) == (1, True)
    host = ("--device", "nvidia/jetson-orin-nano", "--host", "aarch64-unknown-linux-gnu")
    assert run("compile", out, *host, "-o", out / "lib.so")[0] == 0
    assert (out / "lib.so").read_bytes()[18:20] == (183).to_bytes(2, "little")


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ({"exit": 3, "message": "Check failed: (false) is false"}, 3, "Check failed: (false) is false\n"),
        ({"raise": "bad_alloc"}, 1, "RuntimeError: bad_alloc\n"),
        ({"signal": "SIGSEGV"}, -signal.SIGSEGV, ""),
        ({"signal": "SIGKILL", "at": "end"}, -signal.SIGKILL, "Generated: "),
        ({"output_mib": 1, "exit": 1}, 1, "x" * 1023 + "\n"),
        ({"allocate_mib": 20}, 0, ""),
        ({"cpu_s": 0.1, "step_s": 0}, 0, ""),
    ],
)
def test_fails_on_demand(fault: dict[str, Any], code: int, said: str, tmp_path: Path) -> None:
    """A script in config.json is carried through to the compiler, and is for the step that it names."""
    out = tmp_path / "out"
    source = make_llama(tmp_path / "source", fake_mlc={"compile": fault})
    assert step("gen_config", source, out)[0] == 0
    found, output = step("compile", source, out)
    assert (found, said in output) == (code, True), output[-500:]


def test_scripts_one_quantization(tmp_path: Path) -> None:
    """A fault can be for one rung of the ladder alone."""
    faults = {"quantizations": {QUANTIZATION: {"convert_weight": {"exit": 7}}}}
    source = make_llama(tmp_path / "source", fake_mlc=faults)
    assert step("convert_weight", source, tmp_path / "a")[0] == 7
    assert step("convert_weight", source, tmp_path / "b", "q0f16")[0] == 0


def test_scripts_the_machine(tmp_path: Path) -> None:
    """fake.json beside the package is for all that is built, and changes no checkpoint."""
    machine = tmp_path / "machine"
    machine.mkdir()
    (machine / "mlc_llm").symlink_to(FAKE / "mlc_llm")
    (machine / "fake.json").write_text(json.dumps({"gen_config": {"exit": 9}}))
    source = make_llama(tmp_path / "source")
    assert step("gen_config", source, tmp_path / "out", path=machine)[0] == 9
    assert step("gen_config", source, tmp_path / "out")[0] == 0


def test_hangs_with_half_of_its_work_done(tmp_path: Path) -> None:
    """A step can stop for ever in its middle, deaf to SIGTERM, with a child that is deaf, too."""
    fault = {"at": "middle", "hang": True, "ignore_sigterm": True, "grandchild": True}
    source = make_llama(tmp_path / "source", fake_mlc={"convert_weight": fault})
    out = tmp_path / "out"
    process = start("convert_weight", source, "--quantization", QUANTIZATION, "--device", "cpu", "-o", out)
    group = process.pid
    try:
        wait_until(lambda: len(_members(group)) == 2, "the grandchild")
        shard = out / "params_shard_0.bin"
        wait_until(lambda: shard.is_file() and shard.stat().st_size == 204032 // 2, "half a shard")
        os.killpg(group, signal.SIGTERM)
        assert process.poll() is None
        assert not (out / "tensor-cache.json").exists()
    finally:
        os.killpg(group, signal.SIGKILL)
        process.communicate()
    wait_until(lambda: not _members(group), "the end of both")


def _members(group: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("fault", [{"truncate": 100}, {"corrupt": True}, {"omit": ["params_shard_0.bin"]}])
def test_spoils_a_shard(fault: dict[str, Any], tmp_path: Path) -> None:
    """A step can end well with a shard that is cut, changed or gone, in spite of the list."""
    source = make_llama(tmp_path / "source", fake_mlc={"convert_weight": fault})
    assert step("convert_weight", source, tmp_path / "out")[0] == 0
    record = json.loads((tmp_path / "out" / "tensor-cache.json").read_text())["records"][0]
    path = tmp_path / "out" / record["dataPath"]
    sound = (
        path.is_file()
        and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == record["md5sum"]
    )
    assert not sound


def test_engine_speaks_as_the_build_was_scripted(tmp_path: Path) -> None:
    """The engine's script goes with the library, for one quantization if it was so."""
    faults = {"quantizations": {"q0f16": {"engine": {"answer": "!!!!"}}}, "engine": {"answer": "one two"}}
    source = make_llama(tmp_path / "source", fake_mlc=faults)
    code = (
        "import asyncio, sys, mlc_llm\n"
        "engine = mlc_llm.AsyncMLCEngine(sys.argv[1], 'cpu')\n"
        "async def ask():\n"
        "    names = dict(stream=True, request_id='1', max_tokens=20, logprobs=None)\n"
        "    async for each in await engine.completions.create(prompt='a', **names):\n"
        "        sys.stdout.write(''.join(choice.text for choice in each.choices))\n"
        "asyncio.run(ask())\n"
        "engine.terminate()\n"
    )
    for quantization, said in ((QUANTIZATION, "one two"), ("q0f16", "!!!!")):
        out = build(source, tmp_path / quantization, quantization)
        done = subprocess.run(
            [sys.executable, "-c", code, out],
            env={**os.environ, "PYTHONPATH": str(FAKE)},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.stdout == said, done.stderr


def test_tokenizer_of_the_checkpoints_knows_its_words(tmp_path: Path) -> None:
    """Both forms of the tiny tokenizer have the same tokens, and every merge makes one of them."""
    tree = json.loads((make_llama(tmp_path / "a") / "tokenizer.json").read_text())
    vocabulary = tree["model"]["vocab"]
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert all("".join(merge.split(" ")) in vocabulary for merge in tree["model"]["merges"])
    assert vocabulary[IM_END] == config["eos_token_id"] < len(vocabulary) <= config["vocab_size"]
    plain = make_gpt2(tmp_path / "b", tokenizer="vocab")
    assert json.loads((plain / "vocab.json").read_text()) == vocabulary
    merges = (plain / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert merges == tree["model"]["merges"] and not (plain / "tokenizer.json").exists()
