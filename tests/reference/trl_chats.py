"""A training of conversations in TRL, to be repeated by Halfbyte: trl_chats.py MODEL ROWS.jsonl KIND OUT STEPS [PACKED]

KIND is `assistant` (a column `messages`, assistant_only_loss) or `completion` (`prompt` and `completion`, completion_only_loss). OUT gets
the adapter before the training (initial), tokens.jsonl with ids and whether each is learned, and losses.json. The chat template is that
of OUT/template.jinja; for `assistant` it marks what the assistant says with {% generation %}. With PACKED, a number of tokens, the rows
are packed as Halfbyte packs them (best fit decreasing, rows in file order) and handed to TRL's own collator for packed rows; how TRL would
have packed them shows only in which of them share a step.
"""

import json
import os
import sys

import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class InOrder(SFTTrainer):
    def _get_train_sampler(self, *args, **kwargs):
        return SequentialSampler(self.train_dataset)


def packed(rows, capacity):
    """Rows of several examples: the columns that TRL's collator reads of a packed row."""
    order = sorted(range(len(rows)), key=lambda it: -len(rows[it]["input_ids"]))
    bins, room = [], {}
    for example in order:
        length = len(rows[example]["input_ids"])
        free = min((it for it, same in room.items() if it >= length and same), default=None)
        if free is None:
            bins.append([])
            place, left = len(bins) - 1, capacity - length
        else:
            place, left = room[free].pop(), free - length
        bins[place].append(example)
        room.setdefault(left, []).append(place)
    bins = sorted((sorted(it) for it in bins), key=lambda it: it[0])
    joined = lambda key, group: sum((list(rows[it][key]) for it in group), [])
    return Dataset.from_list([
        {"input_ids": joined("input_ids", it), "labels": joined("labels", it), "seq_lengths": [len(rows[at]["input_ids"]) for at in it]} for it in bins
    ])


class Losses(TrainerCallback):
    def __init__(self):
        self.found = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.found.append(logs["loss"])


def main():
    model_dir, rows, kind, out, steps = sys.argv[1:6]
    capacity = int(sys.argv[6]) if len(sys.argv) > 6 else None
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    with open(os.path.join(out, "template.jinja"), encoding="utf-8") as file:
        tokenizer.chat_template = file.read()
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    initial = os.path.join(out, "initial")
    fresh = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in fresh.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    fresh.save_pretrained(initial)
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, initial, is_trainable=True)
    config = SFTConfig(
        output_dir=os.path.join(out, "trl"), max_steps=int(steps), per_device_train_batch_size=4, learning_rate=1e-3, lr_scheduler_type="constant",
        logging_steps=1, report_to="none", save_strategy="no", max_length=256 if capacity is None else None, use_cpu=True, bf16=False, max_grad_norm=1.0, weight_decay=0.0,
        gradient_checkpointing=False, assistant_only_loss=kind == "assistant", completion_only_loss=kind == "completion", packing=False,
        padding_free=capacity is not None,
    )
    losses = Losses()
    trainer = InOrder(model=model, args=config, train_dataset=load_dataset("json", data_files=rows, split="train"), processing_class=tokenizer, callbacks=[losses])
    with open(os.path.join(out, "tokens.jsonl"), "w") as file:
        for row in trainer.train_dataset:
            mask = row.get("assistant_masks") or row.get("completion_mask")
            learned = [label != -100 for label in row["labels"]] if "labels" in row else [bool(it) for it in mask]
            learned[0] = False
            file.write(json.dumps({"ids": list(row["input_ids"]), "trained": learned}) + "\n")
    if capacity is not None:
        trainer.train_dataset = packed(trainer.train_dataset, capacity)
    trainer.train()
    with open(os.path.join(out, "losses.json"), "w") as file:
        json.dump(losses.found, file)


if __name__ == "__main__":
    main()
