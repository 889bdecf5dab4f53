# What the launchers share; sourced, never run.

fail() {
  echo "error: $*" >&2
  exit 2
}

# run COMMAND...: runs it, or with --dry-run only prints it, quoted so that a shell takes it back.
run() {
  if [ "$DRY" = 1 ]; then
    local words
    words=$(printf '%q ' "$@")
    echo "${words% }"
  else
    "$@"
  fi
}

# quoted WORD...: one string that a shell splits into these words again.
quoted() {
  local words
  words=$(printf '%q ' "$@")
  echo "${words% }"
}

# options NAMES... -- WORDS...: sets the variable NAME for each --name=value or --name value up to `--`;
# what follows `--` is TRAIN, the flags of train.py.
options() {
  local names=()
  while [ "$1" != -- ]; do names+=("$1") && shift; done
  shift
  DRY=0
  local flag given
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case "$1" in
      --dry-run) DRY=1; shift; continue ;;
      --*=*) flag="${1%%=*}" given="${1#*=}"; shift ;;
      --*) [ $# -gt 1 ] || fail "$1 needs a value"; flag="$1" given="$2"; shift 2 ;;
      *) fail "unexpected $1; the flags of train.py come after --" ;;
    esac
    flag="${flag#--}"
    case " ${names[*]} " in
      *" $flag "*) printf -v "${flag//-/_}" %s "$given" ;;
      *) fail "unknown flag --$flag; known: ${names[*]/#/--} --dry-run, and after -- those of train.py" ;;
    esac
  done
  if [ $# -gt 0 ]; then shift; fi
  TRAIN=("$@")
  case " $* " in
    *" --workdir"*) ;;
    # Of a step it goes back to that step, and would with every restart.
    *" --resume"*) fail "give --config FILE.py --workdir FOLDER in place of --resume: they go on where the run is" ;;
    *) fail "give train.py's flags after --: -- --config FILE.py --workdir FOLDER" ;;
  esac
}

# needed NAMES...: each must have a value.
needed() {
  local flag variable
  for flag in "$@"; do
    variable="${flag//-/_}"
    [ -n "${!variable}" ] || fail "give --$flag"
  done
}

# swap VARIABLE OLD NEW: replaces each OLD in it. What ${text//OLD/NEW} makes of quotes and & in NEW differs
# between versions of bash, and macOS has 3.2.
swap() {
  local rest="${!1}" made=''
  while [[ $rest == *"$2"* ]]; do
    made+=${rest%%"$2"*}$3
    rest=${rest#*"$2"}
  done
  printf -v "$1" %s "$made$rest"
}

# gpu_memory: sets `memory`, if --memory did not, to the part of a GPU that a process may take: the user's own, by
# JAX's variable for it or that variable's former name, or 0.92. JAX would take 0.75, and a model that just fits
# needs more. A process gets it under the one name and an empty value under the other: with both JAX refuses.
gpu_memory() {
  memory="${memory:-${XLA_CLIENT_MEM_FRACTION:-${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}}}"
}
