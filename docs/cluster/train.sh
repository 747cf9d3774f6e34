#!/bin/bash
# Trains into a folder, or goes on from the newest checkpoint there: bash train.sh FILE FOLDER
set -e
resume=()
if [ -n "$(find "$2" -name manifest.json -print -quit 2>/dev/null)" ]; then resume=(--resume "$2"); fi
exec rllib train file "$1" --results-dir "$2" --checkpoint-freq 10 "${resume[@]}"
