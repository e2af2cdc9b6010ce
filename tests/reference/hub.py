"""What huggingface_hub makes of a cache: it fills one from the hub of the tests, or reads one that Halfbyte filled.

    hub.py fetch ORG/NAME ORG/SET    # from HF_ENDPOINT into HF_HOME; prints the layout, as in tests/fixtures/hub_layout.json
    hub.py read ORG/NAME ORG/SET     # with HF_HUB_OFFLINE=1; prints what it finds there
"""

import json
import os
import sys
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, scan_cache_dir, snapshot_download

FILES = ["config.json", "tokenizer.json", "model.safetensors", "additional_chat_templates/tool.jinja"]
ROWS = "data/train-00000-of-00001.parquet"


def layout(root):
    """Links by their targets, small files by their text, others by their length."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = {"link": os.readlink(path)}
        elif path.is_file() and "refs" in path.parts:
            found[name] = {"text": path.read_text()}
        elif path.is_file():
            found[name] = {"bytes": path.stat().st_size}
    return found


def fetch(model, data):
    for revision in [None, "v1.0"]:
        snapshot_download(model, revision=revision, allow_patterns=FILES)
    snapshot_download(data, repo_type="dataset", allow_patterns=[ROWS])
    return layout(Path(constants.HF_HUB_CACHE))


def read(model, data):
    folder = Path(snapshot_download(model))
    files = {name: (folder / name).read_text() for name in FILES}
    for name in FILES:
        assert Path(hf_hub_download(model, name)) == folder / name
    at_tag = Path(hf_hub_download(model, "config.json", revision="v1.0"))
    rows = Path(hf_hub_download(data, ROWS, repo_type="dataset"))
    scan = scan_cache_dir()
    repos = {repo.repo_id: {"bytes": repo.size_on_disk, "refs": sorted(repo.refs)} for repo in scan.repos}
    return {"files": files, "at_tag": at_tag.read_text(), "rows": rows.read_text(), "repos": repos, "warnings": [str(it) for it in scan.warnings]}


if __name__ == "__main__":
    what, model, data = sys.argv[1:]
    print(json.dumps({"fetch": fetch, "read": read}[what](model, data), indent=1, sort_keys=True))
