"""Installs a Chromium for the browser test of the report where Debian's apt may be used; else says
why not.

python tools/browser.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome")


def main() -> int:
    if found := next((path for name in NAMES if (path := shutil.which(name))), None):
        print(f"browser: {found}")
        return 0
    if shutil.which("apt-get") is None:
        print("browser: none, and no apt-get to install one: the browser test will be skipped")
        return 0
    if os.geteuid() != 0:
        print("browser: none; as root, apt-get install chromium: the browser test will be skipped")
        return 0
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-q"],
        ["apt-get", "install", "-yq", "--no-install-recommends", "chromium", "fonts-noto-cjk"],
    ):
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(
                f"browser: {' '.join(command[:2])} failed ({last}): the browser test will be "
                "skipped"
            )
            return 0
    print(f"browser: {shutil.which('chromium')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
