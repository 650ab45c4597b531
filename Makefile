# outbox: plain PGXS.  `make`, `make install`, `make installcheck`.

EXTENSION = outbox
EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" outbox.control)

MODULE_big = outbox
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))

DATA_built = sql/outbox--$(EXTVERSION).sql
DATA = $(filter-out $(DATA_built),$(wildcard sql/outbox--*--*.sql))
EXTRA_CLEAN = sql/outbox--$(EXTVERSION).sql

PG_CPPFLAGS = -DOUTBOX_VERSION='"$(EXTVERSION)"' -I$(srcdir)/src
# -Wextra knows neither the backend's callback signatures nor the signs it
# mixes on purpose in its own macros.
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare \
	-Wno-missing-field-initializers -Wno-cast-function-type $(WERROR)
SHLIB_LINK = -lrabbitmq -lanl
# Fault points are for tests, and for nothing else; `make clean` before changing it.
ifdef FAULTPOINTS
PG_CPPFLAGS += -DOUTBOX_FAULTPOINTS
endif

# Files named outbox* are installed; all other .sql files are regression tests.
REGRESS = $(filter-out outbox%,$(patsubst sql/%.sql,%,$(sort $(wildcard sql/*.sql))))
ISOLATION = $(patsubst test/isolation/specs/%.spec,%,$(sort $(wildcard test/isolation/specs/*.spec)))
ISOLATION_OPTS = --inputdir=test/isolation

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

sql/outbox--$(EXTVERSION).sql: sql/outbox.sql
	cp $< $@

# Headers are few and every file uses most of them.
$(OBJS): $(wildcard src/*.h) outbox.control
