"""Folders with the tokenizer files of the time before tokenizer.json, and what transformers makes of them.

    older.py crates/data/tests/fixtures

Wants sentencepiece and protobuf beside tests/reference/requirements.txt. sentencepiece/, gpt2/ and qwen2/ are such folders; older.json holds,
for each and for settings that change something, the ids of some texts, and the texts of these ids.
"""

import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

import sentencepiece
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

OUT = Path(sys.argv[1])
LEARNED = [
    "the cat sat on the mat",
    "The dog ran over the hill, and the bird flew.",
    "a fish swam in the sea; it's 1234 days",
    "don't we'll café naïve über 日本",
    "red  old   big film was good",
] * 20
TEXTS = [
    "the cat sat on the mat",
    "  Don't  we'll 12345 ",
    "café cafe\u0301 日本 \U0001f600",
    "a<|im|>b </s> the",
    "<|endoftext|>the dog",
    "",
    "\n\n x\t y",
    " leading",
    "The HILL, and: the-sea!",
]
FLAGS = [
    {},
    {"add_bos_token": True, "add_eos_token": True},
    {"legacy": True},
    {"add_prefix_space": False},
    {"add_prefix_space": True},
]


def write(folder, name, value):
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    (folder / name).write_text(text, encoding="utf-8")


def make(name, model_type, config):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, "config.json", {"model_type": model_type})
    write(folder, "tokenizer_config.json", config)
    return folder


def pieces():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LEARNED), model_writer=model, vocab_size=400, model_type="bpe", byte_fallback=True,
        user_defined_symbols=["<|im|>"], character_coverage=0.98, hard_vocab_limit=False, num_threads=1,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )
    folder = make("sentencepiece", "llama", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})
    (folder / "tokenizer.model").write_bytes(model.getvalue())


def pairs():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LEARNED, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = "".join(" ".join(it) + "\n" for it in model["merges"])
    for name, kind, model_type in [("gpt2", "GPT2Tokenizer", "gpt_neo"), ("qwen2", "Qwen2Tokenizer", "qwen2")]:
        folder = make(name, model_type, {"tokenizer_class": kind})
        write(folder, "vocab.json", model["vocab"])
        write(folder, "merges.txt", "#version: 0.2\n" + merges)


def expected(name, flags):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(OUT / name, Path(place) / name))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        write(folder, "tokenizer_config.json", config | flags)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(it)["input_ids"] for it in TEXTS]
    decoded = [tokenizer.decode(it, skip_special_tokens=True) for it in ids]
    special = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    return special | {"ids": ids, "decoded": decoded}


pieces()
pairs()
found = {
    name: {json.dumps(flags, sort_keys=True): expected(name, flags) for flags in FLAGS}
    for name in ["sentencepiece", "gpt2", "qwen2"]
}
write(OUT, "older.json", {"transformers": transformers.__version__, "texts": TEXTS, "expected": found})
