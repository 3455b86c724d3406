"""Controllers trained in a dream: CMA-ES and PPO."""
