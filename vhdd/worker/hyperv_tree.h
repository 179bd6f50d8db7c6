/* SPDX-License-Identifier: Apache-2.0 */
/* hyperv_tree.h - an XML file as a tree, for hyperv.c: names, a few attributes, text.
 *
 * Ownership  the tree is the caller's: hyperv_tree_free(). Texts live as long as it.
 * Errors     as hyperv.h.
 * Threads    a tree belongs to one thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/cleanup.h"
#include "base/error.h"

struct hyperv_node {
        struct hyperv_node *parent, *first, *last, *next;
        char *name;
        char *label; /* its NAME or CLASSNAME, or NULL */
        char *text;  /* all of it in one, or NULL */
        size_t text_size;
        bool used; /* somebody has read it, or knows that it means nothing here */
};

int hyperv_tree_parse(
        const void *data, size_t size, struct hyperv_node **ret, struct error *err);
struct hyperv_node *hyperv_tree_free(struct hyperv_node *root); /* NULL is fine; returns NULL */
DEFINE_CLEANUP(struct hyperv_node *, hyperv_tree_free)

/* The first child of that name, without regard to case; NULL: none, also of NULL. */
struct hyperv_node *hyperv_child(struct hyperv_node *node, const char *name);
/* "a/b/c" */
struct hyperv_node *hyperv_find(struct hyperv_node *node, const char *path);
/* Its text, without blanks around it, and it is used; NULL: there is none, or it is empty. */
const char *hyperv_text(struct hyperv_node *node);
