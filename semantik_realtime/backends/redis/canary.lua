-- Write a number for the readers of this process, and publish it to its subscriber.
--
-- KEYS  hash    ARGV  channel, number, ttl_ms, 1 on a node of a cluster
redis.call('HSET', KEYS[1], 'number', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
if ARGV[4] == '1' then
  redis.call('SPUBLISH', ARGV[1], ARGV[2])
else
  redis.call('PUBLISH', ARGV[1], ARGV[2])
end
return 1
