"""Decoupled Proxy Alignment (arXiv 2509.14735): the paper's words and where they live here.

| paper                                   | here                                             |
|-----------------------------------------|--------------------------------------------------|
| language prior conflict                 | `analysis` measures it, `dpa.lab` sets its size  |
| proxy LLM, PMO                          | stage `proxy`; a recipe with `proxy=True`        |
| CMO, visual relevance, weights          | `dpa.weighting`, rule `cmo`                      |
| CAL (arXiv 2405.17871)                  | `dpa.weighting`, rule `cal`                      |
| r_j = p(s_j | V, s_<j), q_j = p(s_j | s_<j) | `seen` and `blind` label scores, `dpa.blind` |
| alignment, instruction tuning           | stages `connector` and `instruct`                |
| vanilla                                 | no proxy, weighting `none`                       |
"""

__version__ = "0.1.0"
