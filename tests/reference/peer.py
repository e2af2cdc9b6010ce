"""transformers + peft + bitsandbytes at the work that `cargo xtask bench` gives Halfbyte. Each task prints one JSON object
as its last line; `train` prints one a step before it, so that the caller can time the first.
"""

import argparse
import json
import resource
import statistics
import time

import torch

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def quantization(kind, dtype):
    from transformers import BitsAndBytesConfig

    if kind == "none":
        return None
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
    )


def load(args):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = DTYPES[args.dtype]
    options = {"dtype": dtype, "device_map": args.device}
    if args.quant != "none":
        options["quantization_config"] = quantization(args.quant, dtype)
    return AutoModelForCausalLM.from_pretrained(args.model, **options), AutoTokenizer.from_pretrained(args.model)


def train(args):
    import pandas
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    model, tokenizer = load(args)
    if args.quant != "none":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=args.checkpointing)
    elif args.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    lora = LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora).train()
    # Full rows only, so that a token means the same on both sides.
    rows = []
    lines = args.data.endswith(".jsonl")
    for text in (pandas.read_json(args.data, lines=True) if lines else pandas.read_parquet(args.data))["text"]:
        ids = tokenizer(text)["input_ids"][: args.max_length]
        if len(ids) == args.max_length or args.padded:
            rows.append(ids)
        if len(rows) == args.batch * args.steps:
            break
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.0)
    seconds = []
    for step in range(args.steps):
        some = rows[step * args.batch : (step + 1) * args.batch]
        longest = max(map(len, some))

        def padded(fill):
            return torch.tensor([row + [fill] * (longest - len(row)) for row in some], device=args.device)

        ids, labels = padded(0), padded(-100)
        # Without a mask where nothing is padded, so that the fastest attention is taken.
        mask = (labels != -100).long() if args.padded else None
        start = time.perf_counter()
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.dtype == "bf16"):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if args.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        print(json.dumps({"step": step + 1, "loss": loss.item(), "seconds": seconds[-1]}), flush=True)
    if args.padded:
        # Steps differ in how many tokens they hold.
        return {"tokens_per_second": sum(map(len, rows[2 * args.batch :])) / sum(seconds[2:])}
    median = statistics.median(seconds[2:] or seconds)
    return {"tokens_per_second": args.batch * args.max_length / median}


def generate(args):
    model, tokenizer = load(args)
    ids = tokenizer(args.prompt, return_tensors="pt").to(args.device)
    options = {"max_new_tokens": args.tokens, "min_new_tokens": args.tokens, "do_sample": False}
    seconds = []
    with torch.no_grad():
        for _ in range(3):
            start = time.perf_counter()
            model.generate(**ids, **options)
            seconds.append(time.perf_counter() - start)
    return {"tokens_per_second": args.tokens / statistics.median(seconds[1:])}


def prefill(args):
    model, tokenizer = load(args)
    ids = tokenizer(args.prompt, return_tensors="pt").to(args.device)
    seconds = []
    with torch.no_grad():
        for _ in range(5):
            start = time.perf_counter()
            model.generate(**ids, max_new_tokens=1, do_sample=False)
            seconds.append(time.perf_counter() - start)
    return {"tokens_per_second": ids["input_ids"].shape[1] / statistics.median(seconds[1:])}


def nf4(args):
    import bitsandbytes.functional as F

    weights = torch.randn(4096, 4096).mul(0.02).to(torch.bfloat16)

    def rate(work):
        work()
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return weights.numel() / statistics.median(seconds)

    packed, state = F.quantize_4bit(weights, quant_type="nf4", compress_statistics=True)
    return {
        "quantize": rate(lambda: F.quantize_4bit(weights, quant_type="nf4", compress_statistics=True)),
        "decode": rate(lambda: F.dequantize_4bit(packed, state)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=["train", "generate", "prefill", "nf4"])
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--quant", choices=["nf4", "fp4", "int8", "none"], default="nf4")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--padded", action="store_true", help="rows of any length, padded to the longest of a batch")
    parser.add_argument("--prompt", default="The history of the bicycle")
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    torch.manual_seed(42)
    found = {"train": train, "generate": generate, "prefill": prefill, "nf4": nf4}[args.task](args)
    found["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if args.device == "cuda":
        found["peak_gpu_mib"] = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps(found))


if __name__ == "__main__":
    main()
