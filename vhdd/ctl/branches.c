/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/branches.h"

#include <langinfo.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "vhdd/ctl/ctl.h"

struct brush {
        const char *fork, *last, *line, *blank;
};

static const struct brush utf8_brush = {"├─ ", "└─ ", "│  ", "   "};
static const struct brush ascii_brush = {"|- ", "`- ", "|  ", "   "};

/* What stands in front of the children of the node that is drawn now. */
struct prefix {
        char *text;
        size_t used, capacity;
};

static void *must(void *p)
{
        if (!p) {
                fprintf(stderr, "vhdctl: no memory for the drawing\n");
                exit(CTL_FAILED);
        }
        return p;
}

static void append(struct prefix *prefix, const char *more)
{
        size_t length = strlen(more);

        if (prefix->used + length > prefix->capacity) {
                prefix->capacity = prefix->capacity ? prefix->capacity * 2 : 64;
                prefix->text = must(realloc(prefix->text, prefix->capacity));
        }
        memcpy(prefix->text + prefix->used, more, length);
        prefix->used += length;
}

static const char *stem(const struct brush *brush, bool more)
{
        return more ? brush->line : brush->blank;
}

static void draw_row(const struct branches *branches, const struct prefix *prefix, const void *node,
        const char *twig)
{
        _cleanup_free_ char *branch = must(malloc(prefix->used + strlen(twig) + 1));

        if (prefix->used > 0)
                memcpy(branch, prefix->text, prefix->used);
        memcpy(branch + prefix->used, twig, strlen(twig) + 1);
        branches->row(branches->opaque, node, branch);
}

void branches_draw(const struct branches *branches, const void *root)
{
        const struct brush *brush =
                strcmp(nl_langinfo(CODESET), "UTF-8") == 0 ? &utf8_brush : &ascii_brush;
        struct prefix prefix = {0};

        for (const void *node = root; node;) {
                const void *child = branches->first_child(node);
                bool more = node != root && branches->next_sibling(node);

                draw_row(branches, &prefix, node,
                        node == root   ? ""
                                : more ? brush->fork
                                       : brush->last);
                if (child) {
                        if (node != root)
                                append(&prefix, stem(brush, more));
                        node = child;
                        continue;
                }
                while (node != root && !branches->next_sibling(node)) {
                        node = branches->parent(node);
                        if (node != root)
                                prefix.used -=
                                        strlen(stem(brush, branches->next_sibling(node) != NULL));
                }
                node = node == root ? NULL : branches->next_sibling(node);
        }
        free(prefix.text);
}
