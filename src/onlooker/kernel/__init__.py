"""libbpf and what lies around it: objects, links, rings and BTF, without a word about what runs in them."""
