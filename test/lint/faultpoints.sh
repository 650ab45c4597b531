#!/bin/sh
# Fault points (src/faultpoint.h) are there in a build for tests, and nothing of them
# in any other.  Silent if all is well.

cd "$(dirname "$0")/../.." || exit 1
status=0

complain()
{
	echo "$1"
	status=1
}

uses=$(grep -n 'OUTBOX_FAULTPOINT\b' src/*.[ch] | grep -v '^src/faultpoint\.[ch]:')
names=$(echo "$uses" | sed -n 's/.*OUTBOX_FAULTPOINT("\([^"]*\)").*/\1/p' | sort)

# each has the form by which the test finds it, and a name of its own
echo "$uses" | grep -vE '^[^:]+:[0-9]+:	+OUTBOX_FAULTPOINT\("[a-z]+(-[a-z]+)*"\);$' |
while read -r line; do echo "not of the form OUTBOX_FAULTPOINT(\"name\"); on a line of its own: $line"; done |
grep . && status=1
[ -n "$names" ] || complain 'there is no fault point'
for name in $(echo "$names" | uniq -d); do
	complain "two fault points are called $name"
done

# nobody goes around the macro
grep -nE 'outbox_faultpoint\b|OUTBOX_FAULTPOINTS\b' src/*.[ch] |
	grep -v '^src/faultpoint\.[ch]:' && status=1

# what the compiler gets to see without FAULTPOINTS=1
pg_config=${PG_CONFIG:-pg_config}
for file in $(echo "$uses" | sed 's/:.*//' | sort -u) src/faultpoint.c; do
	# shellcheck disable=SC2046
	text=$("${CC:-cc}" -E -P -Isrc -I"$("$pg_config" --includedir-server)" \
		$("$pg_config" --cppflags) "$file") || complain "$file: cannot be preprocessed"
	if echo "$text" | grep -q 'outbox_faultpoint'; then
		complain "$file: a fault point is left in a build without FAULTPOINTS=1"
	fi
	for name in $names; do
		case $text in *"\"$name\""*) complain "$file: the name of fault point $name is left" ;; esac
	done
done

# and such a build is what make does by default
if make -n -B --no-print-directory PG_CONFIG="$pg_config" src/faultpoint.o 2>/dev/null | grep -q 'DOUTBOX_FAULTPOINTS'; then
	complain 'Makefile: a build has fault points without being asked for them'
fi
if ! make -n -B --no-print-directory PG_CONFIG="$pg_config" FAULTPOINTS=1 src/faultpoint.o 2>/dev/null |
	grep -q 'DOUTBOX_FAULTPOINTS'; then
	complain 'Makefile: FAULTPOINTS=1 gives no fault points'
fi

exit $status
