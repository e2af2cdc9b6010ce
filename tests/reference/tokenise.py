"""How fast rows become tokens: `datasets.map` with a fast tokenizer, on one process, row by row and in batches.

    python tests/reference/tokenise.py MODEL ROWS.parquet [COPIES]

prints rows and tokens a second; Halfbyte's side is `cargo run --release -p halfbyte-data --example batches`, or the first lines
of `halfbyte data`. Both are best measured while nothing else runs.
"""

import sys
import time

from datasets import Dataset, concatenate_datasets, disable_caching, disable_progress_bars
from transformers import AutoTokenizer

disable_caching()
disable_progress_bars()
model, path = sys.argv[1:3]
copies = int(sys.argv[3]) if len(sys.argv) > 3 else 1
tokenizer = AutoTokenizer.from_pretrained(model)
rows = Dataset.from_parquet(path)
rows = concatenate_datasets([rows] * copies)


def tokens(row):
    return tokenizer(row["text"], truncation=True, max_length=512)


for batched in (False, True):
    wall, cpu = time.perf_counter(), time.process_time()
    made = rows.map(tokens, batched=batched, remove_columns=rows.column_names)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    count = sum(len(it) for it in made["input_ids"])
    print(f"batched={batched}: {len(rows)} rows, {count} tokens in {wall:.2f} s ({cpu:.2f} s of CPU): {len(rows) / wall:.0f} rows/s, {count / wall:.0f} tokens/s")
