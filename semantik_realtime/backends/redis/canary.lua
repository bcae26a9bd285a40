-- Write a number for the readers of this process, and publish it to its subscriber.
--
-- KEYS  hash    ARGV  channel, number, ttl_ms
redis.call('HSET', KEYS[1], 'number', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 1
