#!/usr/bin/env bash
# One run of cdisc on a TPU pod that exists only for it: created, installed on, run on all its workers, deleted.
#
#   launch/tpu_pod.sh --tpu_type=v4-32 --tpu_zone=us-central2-b --tpu_share=10.0.0.2:/share \
#     --config=configs/celeba.py --workdir=runs/celeba --config.data.root=runs/CelebA
#
# Takes what `python -m cdisc.main` takes, and options of its own:
#
#   --tpu_type=TYPE        such as v4-32 or v5litepod-16
#   --tpu_zone=ZONE        such as us-central2-b
#   --tpu_version=VERSION  the workers' software: tpu-ubuntu2204-base (default; v2 to v4), v2-alpha-tpuv5-lite (v5e),
#                          v2-alpha-tpuv5 (v5p) or v2-alpha-tpuv6e (v6e)
#   --tpu_share=HOST:PATH  an NFS export, such as Filestore's, that becomes the folder runs/ of every worker. A pod of
#                          more than one worker, as all above v4-8 and the like are, needs it, and a preempted run loses
#                          nothing with it
#   --tpu_spot             a pod that is cheaper and may be preempted
#   --keep                 leaves the pod, which costs money until it is deleted
#   --dry_run              prints every command and runs none
#
# Run it from the repository's root, with gcloud set up. The workers get this folder without what git ignores, and paths
# in the options are theirs: so --workdir is a path in runs/. When the run has ended, however it has, the workdir is
# copied here and the pod deleted; only after a run that succeeded is it left if that copy fails. The same command again
# goes on from the workdir: from the share's, or without a share from the copy that is here.
set -euo pipefail

fail() {
  echo "tpu_pod.sh: $1" >&2
  exit 2
}

type="" zone="" version=tpu-ubuntu2204-base share="" workdir="" keep="" dry_run="" creating=(create) arguments=()
while (($#)); do
  case "$1" in
    --tpu_type=*) type=${1#*=} ;;
    --tpu_zone=*) zone=${1#*=} ;;
    --tpu_version=*) version=${1#*=} ;;
    --tpu_share=*) share=${1#*=} ;;
    --tpu_spot) creating+=(--spot) ;;
    --keep) keep=yes ;;
    --dry_run) dry_run=yes ;;
    --tpu_*) fail "there is no option $1" ;;
    --workdir)
      workdir=${2:-}
      arguments+=("$1")
      ;;
    --workdir=*)
      workdir=${1#*=}
      arguments+=("$1")
      ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
[[ -n "$type" && -n "$zone" ]] || fail "give --tpu_type and --tpu_zone."
[[ -n "$share" || "$type" == *-[1-8] ]] || fail "a $type is several workers: give --tpu_share=HOST:PATH for them all."
[[ "$workdir" == runs/?* ]] || fail "give --workdir=runs/NAME: it is copied from there when the run has ended."

# A name of its own, so that no other pod is ever deleted.
name="cdisc-$(date +%Y%m%d-%H%M%S)-$$"
pod=(gcloud compute tpus tpu-vm)

# Prints a command so that it can be pasted, and runs it unless this is a dry run.
step() {
  printf '%q ' "$@"
  echo
  [[ -n "$dry_run" ]] || "$@"
}

on_workers() { step "${pod[@]}" ssh "$name" --zone="$zone" --worker="$1" --command="$2"; }

# Only names that need no quoting: what scp makes of others depends on its version.
copy() { step "${pod[@]}" scp "$1" "$2" --zone="$zone" --worker="$3"; }

finish() {
  local code=$? missing=""
  trap - EXIT
  set +e # whatever else fails, the pod is to be deleted
  { on_workers 0 "tar -C cdisc -czf results.tar.gz $(printf %q "$workdir")" &&
    copy "$name:results.tar.gz" "$bundle" 0 && step tar -xzf "$bundle"; } || missing=yes
  step rm -f "$bundle"
  local delete=("${pod[@]}" delete "$name" --zone="$zone" --quiet)
  if [[ -n "$keep" || ("$code" == 0 && -n "$missing") ]] || ! step "${delete[@]}"; then
    echo "tpu_pod.sh: the pod costs money until it is deleted by: ${delete[*]}" >&2
  fi
  [[ "$code" != 0 || -z "$missing" ]] || code=1
  exit "$code"
}

bundle="${TMPDIR:-/tmp}/$name.tar.gz"
trap finish EXIT
files=()
[[ -n "$share" || ! -d "$workdir" ]] || files=("$workdir")
step bash -o pipefail -c "git ls-files -z --cached --others --exclude-standard | \
tar --null --files-from=- -czf $(printf '%q ' "$bundle" "${files[@]}")"
step "${pod[@]}" "${creating[@]}" "$name" --zone="$zone" --accelerator-type="$type" --version="$version"
copy "$bundle" "$name:cdisc.tar.gz" all
on_workers all "mkdir -p cdisc/$(printf %q "$(dirname "$workdir")") && tar -xzf cdisc.tar.gz -C cdisc"
if [[ -n "$share" ]]; then
  on_workers all "sudo apt-get -o DPkg::Lock::Timeout=300 install -qy nfs-common && \
sudo mount $(printf %q "$share") cdisc/runs && sudo chmod go+rwx cdisc/runs"
fi
# The images' own Python may be older than 3.11.
on_workers all "cd cdisc && python3 -m pip install -q --user uv && ~/.local/bin/uv venv -q --python=3.12 .venv && \
~/.local/bin/uv pip install -q --python=.venv/bin/python . 'jax[tpu]'"
on_workers all "cd cdisc && $(printf '%q ' .venv/bin/python -m cdisc.main --distributed "${arguments[@]}")"
