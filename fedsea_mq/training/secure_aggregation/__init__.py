"""Secure aggregation: the aggregator learns the weighted mean of the updates and no single update.

Bonawitz et al., "Practical Secure Aggregation", CCS 2017, figure 4, for parties that follow the
protocol and are curious (without the parts against a lying server). A round goes in four stages:

| stage | client to server | server to client |
|---|---|---|
| KEYS | `Keys`: two fresh public keys | `KeyList`: everybody's |
| SHARES | `Shares`: shares of its two secrets, sealed for each other | `ShareList`: its boxes |
| MASKED | `MaskedUpdate` and the masked vector | `UnmaskRequest`: whose vectors arrived |
| UNMASK | `Reveal`: of each member the share of one secret | - |

`SecureClient` and `SecureServer` are the two sides, without sockets and clocks. Any members may be
lost at any stage, as long as the threshold's number remains; the result is the exact sum of those
whose vectors arrived. What this protects from, and what not, is in docs/privacy.md.
"""
