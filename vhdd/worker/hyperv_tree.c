/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/worker/hyperv_tree.h"

#include <ctype.h>
#include <expat.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "vhdd/worker/hyperv.h"

struct parsing {
        XML_Parser parser;
        struct hyperv_node *root, *at;
        unsigned n_nodes, depth;
        int r; /* the first thing that was wrong */
        struct error *err;
};

/* Children before parents, without recursion: the file decides how deep it is. */
struct hyperv_node *hyperv_tree_free(struct hyperv_node *root)
{
        struct hyperv_node *node = root;

        while (node) {
                struct hyperv_node *up = node->parent;

                if (node->first) {
                        struct hyperv_node *child = node->first;

                        node->first = child->next;
                        node = child;
                        continue;
                }
                free(node->name);
                free(node->label);
                free(node->text);
                if (node == root)
                        up = NULL;
                free(node);
                node = up;
        }
        return NULL;
}

static void stop(struct parsing *p, int r)
{
        if (p->r == 0)
                p->r = r;
        XML_StopParser(p->parser, XML_FALSE);
}

static int no_memory(struct parsing *p)
{
        return fail(p->err, ENOMEM, "no memory for a configuration");
}

static const char *label_of(const char **attributes)
{
        for (; attributes[0]; attributes += 2)
                if (strcmp(attributes[0], "NAME") == 0 || strcmp(attributes[0], "CLASSNAME") == 0)
                        return attributes[1];
        return NULL;
}

static void on_start(void *opaque, const char *name, const char **attributes)
{
        struct parsing *p = opaque;
        struct hyperv_node *node;
        const char *label = label_of(attributes);

        if (p->r < 0)
                return;
        if (++p->n_nodes > HYPERV_MAX_NODES || ++p->depth > HYPERV_MAX_DEPTH) {
                stop(p,
                        fail(p->err, E2BIG, "line %lu: more than %u elements, or deeper than %u",
                                (unsigned long)XML_GetCurrentLineNumber(p->parser),
                                HYPERV_MAX_NODES, HYPERV_MAX_DEPTH));
                return;
        }
        node = calloc(1, sizeof(*node));
        if (node) {
                node->parent = p->at;
                if (p->at && p->at->last)
                        p->at->last->next = node;
                else if (p->at)
                        p->at->first = node;
                else
                        p->root = node;
                if (p->at)
                        p->at->last = node;
                node->name = strdup(name);
                node->label = label ? strdup(label) : NULL;
        }
        if (!node || !node->name || (label && !node->label)) {
                stop(p, no_memory(p));
                return;
        }
        p->at = node;
}

static void on_end(void *opaque, const char *name)
{
        struct parsing *p = opaque;

        if (p->r < 0)
                return;
        p->at = p->at->parent;
        p->depth--;
}

static void on_text(void *opaque, const char *text, int length)
{
        struct parsing *p = opaque;
        struct hyperv_node *node = p->at;
        char *larger;

        if (p->r < 0 || !node)
                return;
        larger = realloc(node->text, node->text_size + (size_t)length + 1);
        if (!larger) {
                stop(p, no_memory(p));
                return;
        }
        memcpy(larger + node->text_size, text, (size_t)length);
        node->text = larger;
        node->text_size += (size_t)length;
        larger[node->text_size] = '\0';
}

/* What it could declare, Hyper-V does not: entities that grow, files of ours. */
static void on_doctype(void *opaque, const char *name, const char *system_id, const char *public_id,
        int has_internal_subset)
{
        struct parsing *p = opaque;

        if (has_internal_subset)
                stop(p,
                        fail(p->err, EUCLEAN,
                                "line %lu: it declares entities or elements of its own, which no "
                                "file of Hyper-V does",
                                (unsigned long)XML_GetCurrentLineNumber(p->parser)));
}

static int run(struct parsing *p, const char *data, size_t size)
{
        enum XML_Status status;

        XML_SetUserData(p->parser, p);
        XML_SetElementHandler(p->parser, on_start, on_end);
        XML_SetCharacterDataHandler(p->parser, on_text);
        XML_SetStartDoctypeDeclHandler(p->parser, on_doctype);
        XML_SetParamEntityParsing(p->parser, XML_PARAM_ENTITY_PARSING_NEVER);
        status = XML_Parse(p->parser, data, (int)size, XML_TRUE);
        if (p->r < 0)
                return p->r;
        if (status != XML_STATUS_OK)
                return fail(p->err, EUCLEAN, "line %lu: %s",
                        (unsigned long)XML_GetCurrentLineNumber(p->parser),
                        XML_ErrorString(XML_GetErrorCode(p->parser)));
        return 0;
}

int hyperv_tree_parse(
        const void *data, size_t size, struct hyperv_node **ret, struct error *err)
{
        struct parsing p = {.err = err};
        int r;

        if (size > HYPERV_MAX_SIZE)
                return fail(err, E2BIG, "it has %zu bytes, and %u are the most", size,
                        HYPERV_MAX_SIZE);
        p.parser = XML_ParserCreate(NULL);
        if (!p.parser)
                return no_memory(&p);
        r = run(&p, data, size);
        XML_ParserFree(p.parser);
        if (r < 0) {
                hyperv_tree_free(p.root);
                return r;
        }
        *ret = p.root;
        return 0;
}

/* ---- looking ---- */

static struct hyperv_node *child_of_length(
        struct hyperv_node *node, const char *name, size_t length)
{
        for (struct hyperv_node *at = node ? node->first : NULL; at; at = at->next)
                if (strncasecmp(at->name, name, length) == 0 && at->name[length] == '\0')
                        return at;
        return NULL;
}

struct hyperv_node *hyperv_child(struct hyperv_node *node, const char *name)
{
        return child_of_length(node, name, strlen(name));
}

struct hyperv_node *hyperv_find(struct hyperv_node *node, const char *path)
{
        while (node && *path) {
                size_t n = strcspn(path, "/");

                node = child_of_length(node, path, n);
                path += n + (path[n] == '/');
        }
        return node;
}

const char *hyperv_text(struct hyperv_node *node)
{
        char *text;

        if (!node)
                return NULL;
        node->used = true;
        if (!node->text)
                return NULL;
        while (node->text_size > 0 && isspace((unsigned char)node->text[node->text_size - 1]))
                node->text[--node->text_size] = '\0';
        for (text = node->text; isspace((unsigned char)*text); text++)
                ;
        return *text ? text : NULL;
}
