#!/bin/sh
# run_pgtap.sh FILE: one pgTAP file in a fresh database that has pgtap and outbox.

db=pgtap_$(basename "$1" .sql)

createdb "$db" &&
	psql -XAtq -v ON_ERROR_STOP=1 -d "$db" -c 'CREATE EXTENSION pgtap' -c 'CREATE EXTENSION outbox' &&
	exec psql -XAtq -v ON_ERROR_STOP=1 -v VERBOSITY=terse -d "$db" -f "$1"
