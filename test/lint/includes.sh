#!/bin/sh
# Who may include what.  Silent if all is well.
# A file that is not listed at the end of a rule may not.

cd "$(dirname "$0")/../../src" || exit 1
status=0

# only WHAT PATTERN ALLOWED...
only()
{
	what=$1 pattern=$2
	shift 2
	for file in *.c *.h; do
		case " $* " in *" $file "*) continue ;; esac
		if grep -qE "$pattern" "$file"; then
			echo "src/$file: $what; allowed: ${*:-nobody}"
			status=1
		fi
	done
}

include='^[[:space:]]*#[[:space:]]*include[[:space:]]*[<"]'

# librabbitmq is the codec; its headers come through one fence
only 'includes a header of librabbitmq' \
	"$include(rabbitmq-c/)?(amqp|amqp_framing|amqp_tcp_socket|amqp_ssl_socket)\.h" \
	amqp_headers.h
only 'includes amqp_headers.h' "${include}amqp_headers\.h" \
	amqp_encode.c json_scalar.h headers.h properties.c

# its calls that wait for the network wait without end
only 'calls a function of librabbitmq that blocks' \
	'amqp_(basic_publish|login|login_with_properties|simple_wait_frame|simple_rpc|connection_close|channel_open) *\('

only 'includes OpenSSL' "${include}openssl/" \
	transport_tls.c

# SQL from C: the storage files
only 'includes executor/spi.h' "${include}executor/spi\.h" \
	query.h control.c
only 'includes query.h' "${include}query\.h" \
	query.c deferred.c pick.c dead_letter.c control.c

only 'says PG_VERSION_NUM' 'PG_VERSION_NUM' \
	pgcompat.h

exit $status
