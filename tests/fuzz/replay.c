/* SPDX-License-Identifier: Apache-2.0 */
/* Runs one fuzzer over files and folders of inputs, each input once. */
#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/fuzz/fuzz.h"

#define INPUT_MAX (1u << 20)

static unsigned n_inputs;

static void run_file(const char *path)
{
        uint8_t *data = malloc(INPUT_MAX);
        FILE *file = fopen(path, "rb");
        size_t size;

        if (!data || !file) {
                fprintf(stderr, "cannot read '%s': %s\n", path, strerror(errno));
                exit(1);
        }
        size = fread(data, 1, INPUT_MAX, file);
        fclose(file);
        /* Exactly as long as the input, so that a sanitizer sees a read past its end. */
        data = realloc(data, size ? size : 1);
        if (!data)
                exit(1);
        LLVMFuzzerTestOneInput(data, size);
        free(data);
        n_inputs++;
}

static void run_path(const char *path)
{
        DIR *directory = opendir(path);
        struct dirent *entry;
        char inside[4096];

        if (!directory) {
                run_file(path);
                return;
        }
        while ((entry = readdir(directory))) {
                if (entry->d_name[0] == '.')
                        continue;
                snprintf(inside, sizeof(inside), "%s/%s", path, entry->d_name);
                run_path(inside);
        }
        closedir(directory);
}

int main(int argc, char **argv)
{
        for (int i = 1; i < argc; i++)
                run_path(argv[i]);
        printf("%u inputs\n", n_inputs);
        if (n_inputs == 0) {
                fprintf(stderr, "no input: which files, or folders?\n");
                return 2;
        }
        return 0;
}
