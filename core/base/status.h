// SPDX-License-Identifier: Apache-2.0
// Status codes and the text of the last error.
//
// Every function that can fail returns an int: 0 for success, one of the negative codes below otherwise.
// The code is the negated exit code of the program, so main() returns -status.
// The text of the last error is kept per thread, with the file and line that raised it.
#ifndef TS_BASE_STATUS_H
#define TS_BASE_STATUS_H

enum {
    TS_OK = 0,
    TS_EUSAGE = -2,     // wrong option, wrong call: the user can mend the command line or the YAML
    TS_EINPUT = -3,     // a file or a prompt is damaged, missing or does not fit
    TS_ERESOURCE = -4,  // memory, disk or file handles are exhausted
    TS_EPEER = -5,      // another rank or a device failed
    TS_EINTERNAL = -6,  // our bug
    TS_ESTOPPED = -75,  // stopped by a signal or a client; training, after a checkpoint: run again to go on
    TS_EOF = -100       // end of a sequence; never leaves the program
};

// Records the message (one line: what, where, why, what to do next) and returns `code`.
#define TS_FAIL(code, ...) ts_fail((code), __FILE__, __LINE__, __VA_ARGS__)

// Returns from the enclosing function when `call` fails.
#define TS_TRY(call)                                                                                                   \
    do {                                                                                                               \
        const int ts_try_code_ = (call);                                                                               \
        if (ts_try_code_) {                                                                                            \
            return ts_try_code_;                                                                                       \
        }                                                                                                              \
    } while (0)

// Jumps to `label` when `call` fails, leaving the code in `status`. For functions that clean up.
#define TS_TRY_GOTO(status, call, label)                                                                               \
    do {                                                                                                               \
        (status) = (call);                                                                                             \
        if (status) {                                                                                                  \
            goto label;                                                                                                \
        }                                                                                                              \
    } while (0)

// A condition that only our own bug can break. Always on: a wrong answer is dearer than a branch.
#define TS_ASSERT(condition) ((condition) ? (void)0 : ts_assert_failed(#condition, __FILE__, __LINE__))

int ts_fail(int code, const char *file, int line, const char *format, ...) __attribute__((format(printf, 4, 5)));

// Puts "context: " in front of the last error's text; returns `code` unchanged. For adding the file or tensor
// concerned.
int ts_fail_context(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Text of this thread's last error, without file:line. Never NULL; valid until the next failure on this thread.
const char *ts_error_text(void);
// "file.c:123" of the last error, relative to the source root.
const char *ts_error_place(void);
// Replaces the last error as received from another rank.
void ts_error_set(int code, const char *place, const char *text);

// Puts spaces for control characters: messages quote file names, keys and captions of unknown origin, which must
// neither break the line nor reach the terminal.
void ts_make_one_line(char *text);

// Process exit code for a status (0..75); TS_EOF and unknown codes count as internal errors.
int ts_exit_code(int status);

_Noreturn void ts_assert_failed(const char *condition, const char *file, int line);

#endif
