/*
 * shim.h
 *		What a fuzzing program may ask the stand-in for PostgreSQL.
 */
#ifndef FUZZ_SHIM_H
#define FUZZ_SHIM_H

/* Memory of a context and of those below it. */
extern size_t shim_chunks(MemoryContext context);
extern size_t shim_bytes(MemoryContext context);

/* The most that all contexts together held since shim_reset_peak(). */
extern size_t shim_peak_bytes(void);
extern void shim_reset_peak(void);

/* Descriptors reserved with AcquireExternalFD() and not yet given back. */
extern int	shim_external_fds(void);

/* The settings of settings.c, at their defaults. */
extern void shim_default_settings(void);

#endif							/* FUZZ_SHIM_H */
