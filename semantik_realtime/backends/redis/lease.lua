-- Take or renew one of LIMIT places, by the server's clock.
--
-- KEYS  places (sorted set: holder -> end in ms)    ARGV  holder, limit, ms
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local holds = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '0') > now
if not holds
  and redis.call('ZCOUNT', KEYS[1], string.format('(%d', now), '+inf') >= tonumber(ARGV[2]) then
  return 0
end
-- Before what removes: a server without memory refuses a script only at its first write.
redis.call('ZADD', KEYS[1], string.format('%d', now + ARGV[3]), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%d', now))
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return 1
