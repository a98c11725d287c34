"""The three training stages (`lr2ppo train STAGE`) and their evaluation (`lr2ppo evaluate`)."""
