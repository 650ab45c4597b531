#!/bin/sh
# One version number.  outbox.control has it; everything else agrees.

cd "$(dirname "$0")/../.." || exit 1
status=0
version=$(sed -n "s/^default_version *= *'\(.*\)'/\1/p" outbox.control)

complain()
{
	echo "$1"
	status=1
}

if ! echo "$version" | grep -qE '^[0-9]+\.[0-9]+\.[0-9]+$'; then
	complain "outbox.control: default_version '$version' is not of the form 1.2.3"
fi

if [ -f META.json ]; then
	if command -v perl >/dev/null; then
		found=$(perl -MJSON::PP -0777 -e '
			my $meta = decode_json(<STDIN>);
			print "$meta->{version}\n$_->{version}\n" for values %{ $meta->{provides} };
		' <META.json) || complain 'META.json: not valid JSON'
	fi
	[ -n "$found" ] || complain 'META.json: no version'
	for v in $found; do
		[ "$v" = "$version" ] || complain "META.json: version $v, but outbox.control says $version"
	done
else
	complain 'META.json is missing'
fi

if [ -f CHANGELOG.md ]; then
	v=$(sed -nE 's/^## \[?v?([0-9]+\.[0-9]+\.[0-9]+).*/\1/p' CHANGELOG.md | head -n 1)
	[ "$v" = "$version" ] || complain "CHANGELOG.md: newest entry is '$v', but outbox.control says $version"
else
	complain 'CHANGELOG.md is missing'
fi

grep -q '^EXTVERSION.*outbox\.control' Makefile ||
	complain 'Makefile: EXTVERSION is not read from outbox.control'
if grep -nE "['\" ]$(echo "$version" | sed 's/\./\\./g')['\" ]" src/*.[ch] Makefile 2>/dev/null; then
	complain 'the version number is written out in the files above'
fi

exit $status
