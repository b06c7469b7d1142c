"""What CI must not pass over in silence."""

import os
import shutil
import subprocess
from pathlib import Path

RUN = Path(__file__).resolve().parents[1] / ".ci" / "run"


def test_ci_without_a_browser_fails_and_says_why(tmp_path):
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n", encoding="utf-8")  # nobody who may install one
    (tmp_path / "id").chmod(0o755)
    for tool in ("bash", "dirname"):
        os.symlink(shutil.which(tool), tmp_path / tool)
    result = subprocess.run(["bash", RUN], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert result.returncode == 1
    assert "no Chromium, so the site's tests would be skipped" in result.stderr and not result.stdout
