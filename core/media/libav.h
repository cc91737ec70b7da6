// SPDX-License-Identifier: Apache-2.0
// What the reader and the writer share: the log of libav*, its error codes as ours, its file names.
#ifndef TS_MEDIA_LIBAV_H
#define TS_MEDIA_LIBAV_H

#include <stddef.h>

// Sends the messages of libav* to our debug log. Call before anything else of libav*; cheap when called again.
void ts_libav_init(void);

// Fails with "path: what: libav's own words; remedy". A full disk, too many open files and, unless `code` is TS_EINPUT,
// exhausted memory become TS_ERESOURCE, all others `code`. `remedy` may be NULL.
int ts_libav_fail(int code, int error, const char *path, const char *what, const char *remedy);

// "file:PATH": libav* would take "http://x", "concat:a|b" or "pipe:" for protocols otherwise. TS_EINPUT when too long.
int ts_libav_url(char *out, size_t out_bytes, const char *path);

#endif
