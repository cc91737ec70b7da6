// SPDX-License-Identifier: Apache-2.0
#include "core/base/memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

// The number after `key` at the start of a line of a small text file, times `unit`; -1 when there is none.
static int64_t read_number(const char *path, const char *key, int64_t unit) {
    char line[256];
    int64_t value = -1;
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof line, file)) {
        if (!strncmp(line, key, strlen(key)) && sscanf(line + strlen(key), "%" SCNd64, &value) == 1) {
            value *= unit;
            break;
        }
    }
    if (file) {
        fclose(file);
    }
    return value;
}

int64_t ts_memory_resident(void) {
    return read_number("/proc/self/status", "VmRSS:", 1024);
}

int64_t ts_memory_peak(void) {
    return read_number("/proc/self/status", "VmHWM:", 1024);
}

// ---- control groups

static int64_t least(int64_t a, int64_t b) {
    return a < 0 ? b : b < 0 || a < b ? a : b;
}

// Room below the limit of one group; -1 without one. Pages of files can be given back, so they do not count as used.
static int64_t group_room(const char *folder, const char *limit_name, const char *used_name) {
    char path[4352];
    snprintf(path, sizeof path, "%s/%s", folder, limit_name);
    const int64_t limit = read_number(path, "", 1);
    snprintf(path, sizeof path, "%s/%s", folder, used_name);
    const int64_t used = read_number(path, "", 1);
    if (limit < 0 || used < 0) {
        return -1;
    }
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    const int64_t files = read_number(path, "inactive_file ", 1) + read_number(path, "active_file ", 1);
    const int64_t room = limit - used + (files > 0 ? files : 0);
    return room > 0 ? room : 0;
}

// The least room of the group that `group` names below `root` and of those around it.
static int64_t groups_room(const char *root, const char *group, const char *limit_name, const char *used_name) {
    char folder[4096];
    int64_t room = group_room(root, limit_name, used_name);
    if (snprintf(folder, sizeof folder, "%s%s", root, group) >= (int)sizeof folder) {
        return room;
    }
    for (char *end = folder + strlen(folder); end && strlen(folder) > strlen(root); end = strrchr(folder, '/')) {
        *end = '\0';
        room = least(room, group_room(folder, limit_name, used_name));
    }
    return room;
}

int64_t ts_memory_available(void) {
    char line[2048];
    int64_t room = read_number("/proc/meminfo", "MemAvailable:", 1024);
    FILE *file = fopen("/proc/self/cgroup", "re");
    while (file && fgets(line, sizeof line, file)) {  // number:controllers:group
        line[strcspn(line, "\n")] = '\0';
        const char *controllers = strchr(line, ':');
        const char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (group && !strncmp(controllers, "::", 2)) {  // version 2
            room = least(room, groups_room("/sys/fs/cgroup", group + 1, "memory.max", "memory.current"));
        } else if (group && !strncmp(controllers, ":memory:", 8)) {
            room = least(room, groups_room("/sys/fs/cgroup/memory", group + 1, "memory.limit_in_bytes",
                                           "memory.usage_in_bytes"));
        }
    }
    if (file) {
        fclose(file);
    }
    return room;
}
