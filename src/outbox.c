/*
 * outbox.c
 *		Entry point of the library: settings, shared memory, commit wake-up,
 *		utility hook, launcher, in that order, and nothing else.
 *
 *		Loaded by the postmaster (shared_preload_libraries) everything works.
 *		Loaded by a single backend only enqueue() does, and warns.
 */
#include "pgcompat.h"

#include "launcher.h"
#include "settings.h"
#include "shmem.h"
#include "utility.h"
#include "wake.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

void
_PG_init(void)
{
	outbox_settings_init();
	outbox_wake_init();

	if (!process_shared_preload_libraries_in_progress)
		return;

	outbox_shmem_init();
	outbox_utility_init();
	outbox_launcher_init();
}
