"""`fedsea audit`: what attacks read of what a trunk receives, beside what the noise costs."""
