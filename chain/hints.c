/* SPDX-License-Identifier: Apache-2.0 */
#include "chain/hints.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "chain/paths.h"

static int hex_value(char c)
{
        if (c >= '0' && c <= '9')
                return c - '0';
        c = (char)(c | 0x20);
        return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* "file://./x.vhd" (tapdisk's), "file:///a/x%20y.vhd" to a path, in place. */
static void url_to_path(char *text)
{
        static const char *const prefixes[] = {"file://localhost/", "file://", "file:"};
        const char *from = text;
        char *to = text;

        for (size_t i = 0; i < 3; i++) {
                size_t n = strlen(prefixes[i]);

                if (strncasecmp(text, prefixes[i], n) == 0) {
                        from = text + n - (i == 0); /* keeps the slash behind the host */
                        break;
                }
        }
        while (*from) {
                int high = from[0] == '%' ? hex_value(from[1]) : -1;
                int low = high >= 0 ? hex_value(from[2]) : -1;

                if (low >= 0 && (high || low)) {
                        *to++ = (char)(high << 4 | low);
                        from += 3;
                } else {
                        *to++ = *from++;
                }
        }
        *to = '\0';
}

/* For people: a terminal must not obey what a stranger wrote. */
static void make_printable(char *text)
{
        for (char *p = text; *p; p++)
                if ((unsigned char)*p < 0x20 || *p == 0x7f)
                        *p = '?';
}

bool hints_on_host(const struct file *file)
{
        return file->fs == host_fs();
}

int hints_directory(const struct file *child, char *ret, size_t ret_size)
{
        char path[PATH_TEXT_MAX];
        int r;

        if (!hints_on_host(child)) {
                /* A simulated disk has one directory, or names that begin with a slash. */
                path_directory(child->path, ret, ret_size);
                if (strcmp(ret, ".") == 0)
                        snprintf(ret, ret_size, "/");
                return 0;
        }
        r = path_absolute(child->path, path, sizeof(path));
        if (r < 0)
                return r;
        path_directory(path, ret, ret_size);
        return 0;
}

/* What @text means seen from @directory; "" where it means nothing here. */
static void set_meaning(const struct file *child, const char *directory,
        struct locate_candidate *candidate, const char *text)
{
        if (path_resolve(directory, text, candidate->path, sizeof(candidate->path)) < 0)
                candidate->path[0] = '\0';
        else if (!hints_on_host(child) && !strchr(child->path, '/'))
                memmove(candidate->path, candidate->path + 1, strlen(candidate->path));
}

struct saying {
        char source[8];
        char text[PATH_TEXT_MAX];
        enum path_kind kind;
};

/* Everything that names a parent, the relative Windows locator first (Microsoft's readers believe
 * it), then the slots as they stand, then the header's name. */
static size_t collect_sayings(
        struct file *child, const struct vhd_header *header, struct saying ret[VHD_N_LOCATORS + 1])
{
        size_t n = 0;

        for (unsigned pass = 0; pass < 2; pass++)
                for (unsigned i = 0; i < VHD_N_LOCATORS; i++) {
                        const char *code = header->locators[i].code;
                        struct saying *saying = &ret[n];

                        if ((strcmp(code, "W2ru") == 0) != (pass == 0))
                                continue;
                        if (vhd_locator_read(
                                    child, header, i, saying->text, sizeof(saying->text), NULL) < 0)
                                continue;
                        snprintf(saying->source, sizeof(saying->source), "%s", code);
                        if (strcmp(code, "MacX") == 0)
                                url_to_path(saying->text);
                        saying->kind = path_kind_of(saying->text);
                        n++;
                }
        if (header->parent_name[0]) {
                snprintf(ret[n].source, sizeof(ret[n].source), "name");
                snprintf(ret[n].text, sizeof(ret[n].text), "%s", header->parent_name);
                ret[n].kind = path_kind_of(ret[n].text);
                n++;
        }
        return n;
}

bool hints_know(const struct locate_candidate *candidates, size_t n, const char *path)
{
        for (size_t i = 0; i < n; i++)
                if (strcmp(candidates[i].path, path) == 0)
                        return true;
        return false;
}

size_t locate_candidates(struct file *child, const struct vhd_header *header,
        struct locate_candidate ret[LOCATE_MAX_CANDIDATES])
{
        _cleanup_free_ struct saying *sayings = calloc(VHD_N_LOCATORS + 1, sizeof(struct saying));
        char directory[PATH_TEXT_MAX];
        size_t n = 0, n_sayings;

        if (!sayings || hints_directory(child, directory, sizeof(directory)) < 0)
                return 0;
        n_sayings = collect_sayings(child, header, sayings);
        for (unsigned pass = 0; pass < 2; pass++)
                for (size_t i = 0; i < n_sayings; i++) {
                        struct locate_candidate *candidate = &ret[n];

                        if ((sayings[i].kind == PATH_RELATIVE) != (pass == 0))
                                continue;
                        memcpy(candidate->source, sayings[i].source, sizeof(candidate->source));
                        memcpy(candidate->text, sayings[i].text, sizeof(candidate->text));
                        set_meaning(child, directory, candidate, sayings[i].text);
                        make_printable(candidate->text);
                        n++;
                }
        for (size_t i = 0; i < n_sayings; i++) {
                const char *name = path_bare_name(sayings[i].text);
                struct locate_candidate *candidate = &ret[n];

                if (!name)
                        continue;
                set_meaning(child, directory, candidate, name);
                if (!candidate->path[0] || hints_know(ret, n, candidate->path))
                        continue;
                snprintf(candidate->source, sizeof(candidate->source), HINT_BARE);
                snprintf(candidate->text, sizeof(candidate->text), "%s", name);
                n++;
        }
        return n;
}
