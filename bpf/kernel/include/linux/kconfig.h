/* BCC forces this header in before anything else. */
#define CONFIG_BPF_SYSCALL 1
