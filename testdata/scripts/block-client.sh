#!/bin/sh
# Blocks and unblocks a client on a switch that reads a directory: a client whose
# id is a file in $SWITCH_DIR is blocked.
#
#   - id: 1
#     name: Block client on the switch
#     events: [clients.balance_zero, clients.balance_notzero, clients.archive]
#     script: {path: /usr/local/script/block-client.sh, env: {SWITCH_DIR: /var/lib/switch/blocked}}
#
# Running it twice does no harm, as it must be: an event may come more than once.
set -eu

case $BILLHOOK_OBJECT_ID in
'' | *[!0-9]*)
	echo "client id '$BILLHOOK_OBJECT_ID' is not a number" >&2
	exit 65 # EX_DATAERR: trying again will not cure it
	;;
esac

if ! [ -d "$SWITCH_DIR" ]; then
	echo "the switch's directory $SWITCH_DIR is not there" >&2
	exit 75 # EX_TEMPFAIL: try again later
fi

case $BILLHOOK_EVENT in
clients.balance_zero | clients.archive)
	echo "$BILLHOOK_EVENT_ID" >"$SWITCH_DIR/$BILLHOOK_OBJECT_ID"
	echo "client $BILLHOOK_OBJECT_ID is blocked"
	;;
clients.balance_notzero)
	rm -f "$SWITCH_DIR/$BILLHOOK_OBJECT_ID"
	echo "client $BILLHOOK_OBJECT_ID is unblocked"
	;;
*)
	echo "nothing to do for $BILLHOOK_EVENT: correct the handler's events" >&2
	exit 64 # EX_USAGE
	;;
esac
