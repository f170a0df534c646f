#!/bin/sh
# Plays the receiver of the conformance suite. $1 is the folder of the fifos and
# of the file that counts calls; the other arguments say what to do, in order.
dir=$1
shift
for a in "$@"; do
	case $a in
	stubborn) trap '' TERM ;;
	read) payload=$dir/payload.$$; cat >"$payload" ;;
	enter) echo x >>"$dir/entered" ;;
	gate) read -r _ <"$dir/gate" ;;
	output=*) head -c "${a#output=}" /dev/zero | tr '\0' o ;;
	bad) printf '\377\376\000\033[2J\r\n\342\200\256 bad \200\n'; printf '\377\376\033[2J\r bad \200\n' >&2 ;;
	leak) echo "out $RECEIVER_TOKEN"; echo "err $RECEIVER_TOKEN" >&2 ;;
	echo) cat "$payload"; echo ;;
	report) printf 'id=%s\nattempt=%s\nhandler=%s\n' "$BILLHOOK_EVENT_ID" "$BILLHOOK_ATTEMPT" "$BILLHOOK_HANDLER" ;;
	print=*) printf '%s\n' "${a#print=}" ;;
	retry) echo "try later" >&2; exit 75 ;;
	permanent) echo "never" >&2; exit 65 ;;
	crash) kill -KILL $$ ;;
	hang) while :; do read -r _ <"$dir/never"; done ;;
	succeed) exit 0 ;;
	esac
done
