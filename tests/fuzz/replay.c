/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a fuzzer over files and folders of files without libFuzzer: what was found once stays found,
 * in every build and under every sanitizer. With -s each input is also run with every byte of its
 * first KiB changed, in a few ways: a short fuzz that needs no clang.
 *
 *   fuzz_NAME [-s] CORPUS... */
#include <dirent.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"

static unsigned n_inputs;

/* What is being run, for whoever dies of it. */
static char now[4200];

static void tell(int signal_number)
{
        ssize_t unused = write(STDERR_FILENO, now, strlen(now));

        (void)unused;
        signal(signal_number, SIG_DFL);
        raise(signal_number);
}

static void run_bytes(const uint8_t *bytes, size_t size)
{
        LLVMFuzzerTestOneInput(bytes, size);
        n_inputs++;
}

static void shake(const char *path, uint8_t *bytes, size_t size)
{
        static const uint8_t masks[] = {0x01, 0x80, 0xff};

        for (size_t i = 0; i < size && i < 1024; i++)
                for (size_t k = 0; k < sizeof(masks); k++) {
                        snprintf(now, sizeof(now), "in '%s', byte %zu ^ 0x%02x\n", path, i,
                                masks[k]);
                        bytes[i] ^= masks[k];
                        run_bytes(bytes, size);
                        bytes[i] ^= masks[k];
                }
}

static int run_file(const char *path, bool shaken)
{
        FILE *f = fopen(path, "rb");
        uint8_t *bytes = malloc(FUZZ_MAX_SIZE);
        size_t size;

        if (!f || !bytes) {
                fprintf(stderr, "cannot read '%s'\n", path);
                return 1;
        }
        size = fread(bytes, 1, FUZZ_MAX_SIZE, f);
        fclose(f);
        snprintf(now, sizeof(now), "in '%s'\n", path);
        run_bytes(bytes, size);
        if (shaken)
                shake(path, bytes, size);
        free(bytes);
        return 0;
}

static int run_path(const char *path, bool shaken)
{
        struct stat st;
        struct dirent *entry;
        DIR *dir;
        int failed = 0;

        if (stat(path, &st) < 0) {
                fprintf(stderr, "there is no '%s'\n", path);
                return 1;
        }
        if (!S_ISDIR(st.st_mode))
                return run_file(path, shaken);
        dir = opendir(path);
        while (dir && (entry = readdir(dir))) {
                char name[4096];

                if (entry->d_name[0] == '.')
                        continue;
                snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);
                failed |= run_path(name, shaken);
        }
        if (dir)
                closedir(dir);
        return failed;
}

int main(int argc, char **argv)
{
        bool shaken = false;
        int failed = 0;

        signal(SIGABRT, tell);
        for (int i = 1; i < argc; i++) {
                if (strcmp(argv[i], "-s") == 0)
                        shaken = true;
                else
                        failed |= run_path(argv[i], shaken);
        }
        printf("%u inputs\n", n_inputs);
        return failed || n_inputs == 0;
}
