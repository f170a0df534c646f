#!/bin/sh
# Plays the switch: blocks a client whose money is gone, lets it in again when it
# has paid, and keeps a log of what it was told.
#
# $1 is the switch's folder: "blocked" holds one file per blocked client, "log"
# one line per call: nanoseconds, handler, attempt, payload.
set -eu
dir=$1
payload=$(cat)

case $BILLHOOK_EVENT in
clients.balance_zero) : >"$dir/blocked/$BILLHOOK_OBJECT_ID" ;;
clients.balance_notzero) rm -f "$dir/blocked/$BILLHOOK_OBJECT_ID" ;;
esac

# The lock keeps lines whole: several clients are served at once.
exec 9>>"$dir/log"
flock 9
printf '%s %s %s %s\n' "$(date +%s%N)" "$BILLHOOK_HANDLER" "$BILLHOOK_ATTEMPT" "$payload" >&9
