"""Network parts: nn.Modules on torch alone, no fairseq."""
