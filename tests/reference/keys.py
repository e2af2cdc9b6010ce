"""The keys that transformers, peft and bitsandbytes write and read, as a list that Halfbyte's tests hold its tables against.

    keys.py > tests/fixtures/known_keys.json
"""

import dataclasses
import inspect
import json
import re

import bitsandbytes
import peft
import tokenizers
import transformers
from transformers import (
    BitsAndBytesConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    GPTJConfig,
    GptOssConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    tokenization_utils_base,
    tokenization_utils_tokenizers,
)


def of_class(config):
    """Fields, arguments and other names of a configuration class, and what one says of itself."""
    fields = {it.name for it in dataclasses.fields(config)} if dataclasses.is_dataclass(config) else set()
    arguments = {it for it in inspect.signature(config.__init__).parameters} - {"self", "args", "kwargs"}
    return set(config().to_dict()) | fields | arguments | set(getattr(config, "attribute_map", {}))


def of_tokenizers():
    """What the code that makes a tokenizer takes out of its settings."""
    found = set(PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES)
    for module in [tokenization_utils_base.PreTrainedTokenizerBase.__init__, tokenization_utils_tokenizers.TokenizersBackend.__init__]:
        found |= set(re.findall(r"kwargs\.(?:pop|get|setdefault)\(\s*\"(\w+)\"", inspect.getsource(module)))
    classes = [transformers.LlamaTokenizer, transformers.GPT2Tokenizer, transformers.Qwen2Tokenizer]
    for one in classes:
        found |= set(inspect.signature(one.__init__).parameters)
    inside = {"self", "args", "kwargs", "tokenizer", "vocab", "merges", "gguf_file", "tokenizer_object", "post_processor", "unk_id"}
    inside |= {"tokenizer_padding", "tokenizer_truncation", "_json_padding", "_json_truncation", "_spm_precompiled_charsmap"}
    return found - inside


CONFIGS = [
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    GraniteConfig,
    Olmo2Config,
    Gemma2Config,
    Gemma3TextConfig,
    Phi3Config,
    MixtralConfig,
    Qwen3MoeConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GPT2Config,
    GPTJConfig,
    GptOssConfig,
]
generation = GenerationConfig()
lists = {config.__name__: of_class(config) for config in CONFIGS}
lists["GenerationConfig"] = set(generation.to_dict()) | {it for it in vars(generation) if not it.startswith("_")}
lists["LoraConfig"] = {it.name for it in dataclasses.fields(peft.LoraConfig)}
lists["BitsAndBytesConfig"] = set(BitsAndBytesConfig(load_in_4bit=True).to_dict()) | set(
    inspect.signature(BitsAndBytesConfig.__init__).parameters
) - {"self", "kwargs"}
lists["PreTrainedTokenizerFast"] = of_tokenizers()
versions = {it.__name__: it.__version__ for it in [transformers, peft, bitsandbytes, tokenizers]}
print(json.dumps({"versions": versions} | {name: sorted(it) for name, it in lists.items()}, indent=1))
