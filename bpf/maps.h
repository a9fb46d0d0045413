/* Every map, one line each. Sizes, flags and pins belong to the control plane (ebpfnet/abi.py TABLES): compilation
 * declares one entry, and the loader puts the real maps in their place. */
BPF_TABLE("hash", struct frontend, struct service, services, 1);
BPF_TABLE("hash", __u64, struct set, sets, 1);
BPF_TABLE("hash", struct slot, struct backend, slots, 1);
BPF_TABLE("hash", struct member, __u32, members, 1);
BPF_TABLE("lru_hash", struct client, struct affinity, affinity, 1);
BPF_F_TABLE("lpm_trie", struct range, __u32, ranges, 1, BPF_F_NO_PREALLOC);
BPF_F_TABLE("lpm_trie", struct block, __u32, blocks, 1, BPF_F_NO_PREALLOC);
BPF_TABLE("array", __u32, struct node, node, 1);
BPF_TABLE("lru_percpu_hash", struct member, struct usage, usage, 1);
BPF_TABLE("hash", struct address, struct pod, pods, 1);
BPF_TABLE("lru_hash", struct tuple, struct flow, flows, 1);
BPF_TABLE("hash", struct member, __u32, departed, 1);
BPF_TABLE("array", __u32, __u32, turn, 1);
BPF_TABLE("percpu_array", __u32, struct flow, scratch, 1);
BPF_TABLE("lru_hash", struct fragment, struct ports, fragments, 1);
BPF_TABLE("lru_hash", struct netns, struct address, namespaces, 1);
BPF_TABLE("lru_hash", __u64, struct socket, sockets, 1);
BPF_TABLE("hash", struct address, __u32, peers, 1);
BPF_F_TABLE("lpm_trie", struct block, __u32, peer_blocks, 1, BPF_F_NO_PREALLOC);
BPF_TABLE("hash", struct rule_key, struct rule, rules, 1);
BPF_TABLE("hash", struct port_range, struct rule, rule_ports, 1);
BPF_TABLE("lru_percpu_hash", __u64, struct hits, rule_hits, 1);
BPF_TABLE("array", __u32, __u32, generations, 1);
BPF_TABLE("percpu_array", __u32, struct counter, forwards, 1);
BPF_TABLE("percpu_array", __u32, struct counter, drops, 1);
BPF_TABLE("array", __u32, struct drop_sample, drop_samples, 1);
BPF_TABLE("array", __u32, __u64, drop_sequence, 1);
