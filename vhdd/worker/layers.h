/* SPDX-License-Identifier: Apache-2.0 */
/* layers.h - what worker and resolver say of an open chain's images.
 *
 * Units      bytes.        Ownership  the answer is the caller's; NULL without memory.
 * Errors     none.         Threads    any.
 */
#pragma once

#include <jansson.h>

#include "chain/chain.h"

/* Leaf first: {path, uuid, type: "fixed" | "dynamic" | "differencing" | "raw", format, size}. */
json_t *layers_to_json(const struct chain *chain);
/* The type of layer 0, in the same words. */
const char *root_type_text(const struct chain *chain);
