/*
 * standalone.c
 *		A main() for decode_fuzzer.c where there is no libFuzzer: frames of all
 *		kinds, changed at random, for a number of seconds. The few options are
 *		named as libFuzzer names them; other arguments are files to run again.
 */
#include "pgcompat.h"

#include <time.h>
#include <unistd.h>

#include <sanitizer/common_interface_defs.h>

#include "frames.h"

#undef printf
#undef fprintf

int			LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static Bytes input;
static const char *prefix = "";

/* What broke it, in a file as libFuzzer would leave it. */
static void
keep_input(void)
{
	char		path[1024];
	FILE	   *out;

	snprintf(path, sizeof(path), "%scrash-%d", prefix, (int) getpid());
	out = fopen(path, "w");
	if (out == NULL)
		return;
	fwrite(input.data, 1, input.len, out);
	fclose(out);
	fprintf(stderr, "the input is in %s\n", path);
}

static int
run_file(const char *path)
{
	FILE	   *in = fopen(path, "r");
	char		data[4096];
	size_t		len;

	if (in == NULL)
	{
		perror(path);
		return 1;
	}
	input.len = 0;
	while ((len = fread(data, 1, sizeof(data), in)) > 0)
		put(&input, data, len);
	fclose(in);
	return LLVMFuzzerTestOneInput(input.data, input.len);
}

int
main(int argc, char **argv)
{
	Random		random = {(uint64) time(NULL)};
	int			seconds = 10;
	time_t		end;
	uint64		runs = 0;

	for (int i = 1; i < argc; i++)
	{
		if (strncmp(argv[i], "-max_total_time=", 16) == 0)
			seconds = atoi(argv[i] + 16);
		else if (strncmp(argv[i], "-seed=", 6) == 0)
			random.state = strtoull(argv[i] + 6, NULL, 10);
		else if (strncmp(argv[i], "-artifact_prefix=", 17) == 0)
			prefix = argv[i] + 17;
		else if (argv[i][0] != '-' && access(argv[i], F_OK) == 0)
			return run_file(argv[i]);
	}
	__sanitizer_set_death_callback(keep_input);
	printf("no clang: random frames for %d s\n", seconds);
	for (end = time(NULL) + seconds; time(NULL) < end; runs++)
	{
		input.len = 0;
		put_fuzzer_input(&input, &random);
		LLVMFuzzerTestOneInput(input.data, input.len);
	}
	printf("Done " UINT64_FORMAT " runs in %d second(s)\n", runs, seconds);
	free(input.data);
	return 0;
}
