#!/bin/sh
# The tables of docs/performance.md say what was measured.

cd "$(dirname "$0")/../.." || exit 1
PERL5LIB=bench/lib exec perl bench/report.pl --check
