"""From an empty folder to a mean average precision: download, train, evaluate, each by its script."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]


def script(name: str, *words: str) -> str:
    command = [sys.executable, str(PROJECT / name), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_download_train_evaluate(tmp_path: Path, front: Any) -> None:
    pytest.importorskip("torch")
    guns, models = str(tmp_path / "guns"), str(tmp_path / "models")
    servers = ["--base_url", front.url, "--endpoint_url", front.url]
    script("open_images_downloader.py", "--root", guns, "--class_names", "Handgun,Shotgun", *servers)
    small = ["--net", "mb1-ssd-lite", "--num_epochs", "1", "--batch_size", "8", "--num_workers", "0"]
    data = ["--dataset_type", "open_images", "--data", guns]
    script("train_ssd.py", *data, *small, "--checkpoint_folder", models, "--validation_epochs", "1")
    best = next(path for path in sorted(Path(models).glob("*")) if "best" in path.name)
    evaluation = ["--trained_model", str(best), "--dataset", guns, "--eval_dir", str(tmp_path / "results")]
    table = script("eval_ssd.py", *evaluation)
    assert "Handgun" in table
    assert "Shotgun" in table
